// Renders the Markdown of a model card: headings, paragraphs, lists, tables, code, links and folds. It parses no HTML and loads
// nothing; unknown markup stays as text.

import { make } from "./dom.js";

const INLINE = /\\([!-/:-@[-`{-~])|`([^`]+)`|\*\*([^*]+)\*\*|\*([^*]+)\*|!?\[([^\]]*)\]\(([^)\s]*)\)/g;

/** Returns the nodes of a text in Markdown. */
export function renderMarkdown(text) {
  const lines = text.replace(/\r\n?/g, "\n").replace(/^---\n[\s\S]*?\n---\n/, "").split("\n");
  const root = document.createDocumentFragment();
  let place = root;
  for (let at = 0; at < lines.length; ) {
    const from = at;
    const line = lines[at++];
    const more = (fits) => {
      while (at < lines.length && fits(lines[at])) at++;
      return lines.slice(from, at);
    };
    let found;
    if (line.trim() === "") continue;
    if (line.startsWith("```")) {
      const code = more((next) => !next.startsWith("```")).slice(1);
      at++;
      place.append(make("pre", { tabindex: "0" }, make("code", {}, code.join("\n"))));
    } else if ((found = /^<details><summary>(.*)<\/summary>$/.exec(line))) {
      const fold = make("details", {}, make("summary", {}, ...inline(found[1])));
      place.append(fold);
      place = fold;
    } else if (line === "</details>") {
      place = root;
    } else if ((found = /^(#{1,6})\s+(.*?)\s*#*$/.exec(line))) {
      // The dialog has the first level of its own.
      place.append(make(`h${Math.min(found[1].length + 2, 6)}`, {}, ...inline(found[2])));
    } else if (line.startsWith("|")) {
      place.append(table(more((next) => next.startsWith("|"))));
    } else if (/^([-*]|\d+[.)])\s/.test(line)) {
      const items = more((next) => /^(([-*]|\d+[.)])\s|\s+\S)/.test(next));
      place.append(list(items));
    } else {
      const block = more((next) => next.trim() !== "" && !/^(```|#{1,6}\s|\||[-*]\s|<\/?details>)/.test(next));
      place.append(make("p", {}, ...inline(block.join(" "))));
    }
  }
  return root;
}

function list(lines) {
  const items = [];
  for (const line of lines) {
    const found = /^(?:[-*]|\d+[.)])\s+(.*)$/.exec(line);
    if (found) items.push(found[1]);
    else items[items.length - 1] += ` ${line.trim()}`;
  }
  const kind = /^\d/.test(lines[0]) ? "ol" : "ul";
  return make(kind, {}, ...items.map((item) => make("li", {}, ...inline(item))));
}

function table(lines) {
  // A bar after a backslash is text. Safari before 16.4 has no lookbehind, so the other bars become line breaks.
  const split = (line) => line.trim().replace(/\\.|\|/g, (found) => (found === "|" ? "\n" : found));
  const cells = (line) => split(line).replace(/^\n|\n$/g, "").split("\n").map((cell) => cell.trim());
  const row = (line, tag, extra) => make("tr", {}, ...cells(line).map((cell) => make(tag, extra, ...inline(cell))));
  const ruled = lines.length > 1 && /^[|\s:-]+$/.test(lines[1]);
  const head = ruled ? make("thead", {}, row(lines[0], "th", { scope: "col" })) : null;
  const body = make("tbody", {}, ...lines.slice(ruled ? 2 : 0).map((line) => row(line, "td", {})));
  return make("div", { class: "scroll", tabindex: "0" }, make("table", {}, head, body));
}

function inline(text) {
  const nodes = [];
  let end = 0;
  for (const found of text.matchAll(INLINE)) {
    nodes.push(text.slice(end, found.index));
    end = found.index + found[0].length;
    const [, escaped, code, strong, soft, name, address] = found;
    if (escaped !== undefined) nodes.push(escaped);
    else if (code !== undefined) nodes.push(make("code", {}, code));
    else if (strong !== undefined) nodes.push(make("strong", {}, ...inline(strong)));
    else if (soft !== undefined) nodes.push(make("em", {}, ...inline(soft)));
    else nodes.push(link(name, address, found[0]));
  }
  nodes.push(text.slice(end));
  return nodes.filter((node) => node !== "");
}

function link(name, address, written) {
  if (written.startsWith("!")) return name; // a picture that would be loaded from elsewhere
  if (!/^https?:\/\//i.test(address)) return written;
  return make("a", { href: address, target: "_blank", rel: "noopener noreferrer" }, ...inline(name));
}
