// Runs tasks a few at a time.

/** Returns a function that queues a task; at most `most` run at a time, and a signal removes a task from the queue. */
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
  return (task, signal) =>
    new Promise((resolve, reject) => {
      waiting.push({ task, signal, resolve, reject });
      next();
    });
}
