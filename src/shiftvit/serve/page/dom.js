// Builds elements. Text always becomes text nodes, so markup in a label stays text.

/** Returns an element. A property that begins with "on" is a listener; null and false leave an attribute out. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** Returns foreign text, which may run from right to left without affecting the text around it. */
export const foreign = (text) => make("bdi", {}, text);

const percents = new Intl.NumberFormat("en", { style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 });

export const percent = (score) => (score > 0 && score < 0.0005 ? "<0.1%" : percents.format(score));

export const whole = (number) => number.toLocaleString("en");

/** Returns a count with its noun: "1 picture", "2 pictures". */
export const count = (number, noun, many = `${noun}s`) => `${whole(number)} ${number === 1 ? noun : many}`;

export const megabytes = (bytes) => `${(bytes / 2 ** 20).toLocaleString("en", { maximumFractionDigits: 1 })} MB`;

/** Tells a screen reader. */
export function say(text) {
  const log = document.getElementById("said");
  log.append(make("p", {}, text));
  while (log.children.length > 20) log.firstChild.remove();
}
