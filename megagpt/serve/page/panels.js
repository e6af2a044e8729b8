// Side panels: next to the page on a wide screen, over it on a narrow one.

import { byId } from "./dom.js";

const narrow = matchMedia("(max-width: 760px)");

/**
 * A panel that `opener` opens and closes. On a narrow screen it lies over the page, and closes when the focus leaves
 * it. Returns {close}, which says whether there was something to close.
 */
export function sheet({ opener, element, closer = null }) {
  const isOpen = () => element.classList.contains("open");

  function set(open) {
    element.classList.toggle("open", open);
    opener.setAttribute("aria-expanded", String(open));
    byId("shade").hidden = !open || !narrow.matches;
    if (open) element.querySelector("button, input, textarea")?.focus();
  }

  function close() {
    if (!isOpen()) return false;
    const inside = element.contains(document.activeElement);
    set(false);
    if (inside) opener.focus();
    return true;
  }

  opener.addEventListener("click", () => (isOpen() ? close() : set(true)));
  closer?.addEventListener("click", close);
  byId("shade").addEventListener("click", close);
  narrow.addEventListener("change", close);
  element.addEventListener("focusout", ({ relatedTarget }) => {
    if (narrow.matches && isOpen() && relatedTarget && relatedTarget !== opener && !element.contains(relatedTarget))
      set(false);
  });
  return { close };
}
