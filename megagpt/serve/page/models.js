// The server's models, and a picker that offers only the models with the needed ability.

import { ApiError, get } from "./api.js";
import { make } from "./dom.js";
import { load, save } from "./store.js";

const DOES = {
  completions: "complete text",
  suffix: "fill gaps",
  chat: "chat",
  edits: "edit",
  embeddings: "make embeddings",
};

/** Entries of /v1/models: {id, abilities, context_length, dimensions}. */
export async function fetchModels() {
  const { data } = await get("models");
  return data.map((model) => ({ context_length: null, dimensions: 0, abilities: [], ...model }));
}

/** The one of `models` that a tab uses: the last one chosen, or the first that has the ability. */
export function chosen(models, place, ability) {
  const able = models.filter((model) => model.abilities.includes(ability));
  return able.find((model) => model.id === load(`model.${place}`, null)) ?? able[0] ?? null;
}

/** Fills a <select> with the models that have the ability; the others are listed after them, disabled. */
export function fillPicker(select, models, place, ability) {
  const able = models.filter((model) => model.abilities.includes(ability));
  const others = models.filter((model) => !model.abilities.includes(ability));
  const current = chosen(models, place, ability);
  const options = able.map((model) => make("option", { value: model.id, text: model.id, selected: model === current }));
  if (!able.length)
    options.push(
      make("option", { value: "", text: models.length ? `none can ${DOES[ability]}` : "no model", selected: true }),
    );
  if (others.length) {
    const names = others.map((model) => make("option", { text: `${model.id} (${about(model)})`, disabled: true }));
    options.push(make("optgroup", { label: `Cannot ${DOES[ability]}` }, ...names));
  }
  select.replaceChildren(...options);
}

export function choose(place, id) {
  save(`model.${place}`, id);
}

const about = (model) =>
  model.abilities.map((ability) => (ability === "suffix" ? "insertion" : ability)).join(", ") || "nothing";

/** The error of a tab without a model: the missing ability, and how to serve a model that has it. */
export function missing(models, ability) {
  const trained = {
    chat: "runs/ppo",
    edits: "runs/edit",
    embeddings: "runs/embed",
    suffix: "runs/code",
    completions: "runs/demo",
  }[ability];
  const served = models.length ? `Served now: ${models.map((model) => model.id).join(", ")}. ` : "";
  const advice = `${served}Start the server with one that can, for example: megagpt serve ${trained}`;
  return new ApiError(`No model here can ${DOES[ability]}.`, { advice });
}
