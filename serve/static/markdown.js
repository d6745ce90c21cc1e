/** Markdown as elements. marked only takes it apart; HTML in it stays text, images and links load nothing. */
import { element } from "./dom.js";
import { lexer } from "./vendor/marked.esm.js";

/** @param {string} text @returns {DocumentFragment} */
export function formatted(text) {
  const fragment = document.createDocumentFragment();
  fragment.append(...blocks(lexer(text, { gfm: true, breaks: false })));
  return fragment;
}

const blocks = (tokens) => tokens.flatMap((token) => (BLOCKS[token.type] ?? unknown)(token));
const inline = (token) => (token.tokens ? token.tokens.flatMap((part) => (INLINE[part.type] ?? unknown)(part)) : [plain(token)]);
const unknown = (token) => [document.createTextNode(token.raw)];
const plain = (token) => document.createTextNode(unescaped(token.text ?? token.raw));
const wrapped = (tag) => (token) => [element(tag, {}, ...inline(token))];

/** marked leaves what is escaped for HTML in some texts. */
const ENTITIES = { "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&#39;": "'" };
const unescaped = (text) => text.replace(/&(?:amp|lt|gt|quot|#39);/g, (entity) => ENTITIES[entity]);

const BLOCKS = {
  space: () => [],
  paragraph: wrapped("p"),
  heading: wrapped("h4"),
  text: (token) => inline(token),
  hr: () => [element("hr")],
  code: (token) => [element("pre", { tabindex: 0 }, element("code", { text: token.text }))],
  blockquote: (token) => [element("blockquote", {}, ...blocks(token.tokens))],
  list: (token) => [
    element(token.ordered ? "ol" : "ul", { start: token.ordered && token.start !== 1 ? token.start : null }, ...token.items.map(item)),
  ],
  table: (token) => [
    element(
      "table",
      {},
      element("thead", {}, element("tr", {}, ...token.header.map((cell) => element("th", {}, ...inline(cell))))),
      element("tbody", {}, ...token.rows.map((row) => element("tr", {}, ...row.map((cell) => element("td", {}, ...inline(cell)))))),
    ),
  ],
};

const item = (token) => element("li", {}, ...blocks(token.tokens));

const INLINE = {
  text: (token) => inline(token),
  escape: (token) => [plain(token)],
  strong: wrapped("strong"),
  em: wrapped("em"),
  del: wrapped("del"),
  br: () => [element("br")],
  codespan: (token) => [element("code", { text: token.text })],
  link: (token) => {
    const isWeb = /^https?:\/\//i.test(token.href);
    const attributes = isWeb ? { href: token.href, rel: "noopener noreferrer", target: "_blank" } : {};
    return [element(isWeb ? "a" : "span", attributes, ...inline(token))];
  },
};
