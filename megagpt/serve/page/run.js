// Work that a button starts and stops.

/**
 * Makes `button` start `work(signal)`, and stop it while it runs; `show(running)` draws the button. `failed(error)`
 * gets what went wrong; stopping is no error. Returns {start, stop, running}; the first two resolve when the work has
 * ended.
 */
export function startStop(button, { work, show, failed }) {
  let controller = null;
  let ended = Promise.resolve();

  async function run(signal, ...words) {
    show(true);
    try {
      await work(signal, ...words);
    } catch (error) {
      if (!signal.aborted) failed(error);
    } finally {
      controller = null;
      show(false);
    }
  }

  function start(...words) {
    if (!controller) {
      controller = new AbortController();
      ended = run(controller.signal, ...words);
    }
    return ended;
  }

  function stop() {
    controller?.abort();
    return ended;
  }

  button.addEventListener("click", () => (controller ? stop() : start()));
  show(false);
  return { start, stop, running: () => controller !== null };
}

/** A button that reads `label`, and "Stop" while its work runs. */
export const named = (button, label) => (running) => {
  button.textContent = running ? "Stop" : label;
  button.classList.toggle("running", running);
};
