// Runs tasks a few at a time.

/** Returns a function that queues a task, or puts it `first`; at most `most` run at a time. An aborted one does not run. */
export function limit(most) {
  let active = 0;
  const waiting = [];
  const next = () => {
    while (active < most && waiting.length > 0) {
      const { task, signal, resolve, reject } = waiting.shift();
      if (signal.aborted) {
        reject(signal.reason);
        continue;
      }
      active++;
      task().then(resolve, reject).finally(() => (active--, next()));
    }
  };
  return (task, signal, first = false) =>
    new Promise((resolve, reject) => {
      waiting[first ? "unshift" : "push"]({ task, signal, resolve, reject });
      next();
    });
}
