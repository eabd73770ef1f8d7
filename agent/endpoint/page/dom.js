// Tools to build the page. Text becomes text nodes and nothing else: no name or error that
// anybody chose can become markup.

/** el makes an element with attributes and children, which are nodes or text. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...real(children));
  return node;
}

/** real leaves out children that are not there: those of conditions that do not hold. */
const real = (children) => children.filter((child) => child !== undefined && child !== null && child !== false && child !== "" && child !== 0);

/**
 * read parses an answer. Characters that cannot be seen, or that turn the text around them, are
 * shown as what they are: something that does not belong there.
 */
export function read(text) {
  const plain = (value) => value.replace(/[\r\n\t]+/g, " ").replace(/[\p{Cc}\p{Cf}]/gu, "\ufffd");
  return JSON.parse(text, (_, value) => (typeof value === "string" ? plain(value) : value));
}

export const byId = (id) => document.getElementById(id);

/** setText changes the text of node, if it changes. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** setClass gives node exactly these classes. */
export function setClass(node, names) {
  if (node.className !== names) node.className = names;
}

const known = new WeakMap(); // parent → { key → node }

/**
 * keyed makes the children of parent those of items, in their order: make(item) a new one,
 * update(node, item) each. Nodes stay the same, so focus and selection do.
 */
export function keyed(parent, items, keyOf, make, update) {
  const before = known.get(parent) ?? new Map();
  const after = new Map();
  const focused = parent.contains(document.activeElement) ? document.activeElement : null;
  let next = parent.firstChild;
  for (const item of items) {
    let key = keyOf(item);
    while (after.has(key)) key += "+"; // what looks the same need not be the same
    const node = before.get(key) ?? make(item);
    before.delete(key);
    after.set(key, node);
    update(node, item);
    if (node === next) {
      next = next.nextSibling;
    } else {
      parent.insertBefore(node, next);
    }
  }
  for (const node of before.values()) node.remove();
  known.set(parent, after);
  if (focused && focused.isConnected && document.activeElement !== focused) focused.focus({ preventScroll: true });
}

/** rebuild replaces the children of parent when what they are made of has changed. */
export function rebuild(parent, model, make) {
  const text = JSON.stringify(model);
  if (known.get(parent) === text) return;
  known.set(parent, text);
  parent.replaceChildren(...real(make(model)));
}
