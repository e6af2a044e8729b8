// Cosines of vectors, and their first two principal components.

const ROUNDS = 500;
const CLOSE = 1e-12;

function dot(a, b) {
  let sum = 0;
  for (let place = 0; place < a.length; place += 1) sum += a[place] * b[place];
  return sum;
}

const unit = (a) => {
  const length = Math.sqrt(dot(a, a));
  return length > 0 ? a.map((value) => value / length) : a;
};

const trace = (matrix) => matrix.reduce((sum, row, place) => sum + row[place], 0);

/** The cosines of all pairs, n lists of n. */
export function cosines(vectors) {
  const units = vectors.map(unit);
  return units.map((a) => units.map((b) => dot(a, b)));
}

/**
 * Principal components of n vectors: {places: n pairs [x, y], shares: [of x, of y]}, where a share is the part of the
 * variance that a direction has. The vectors' products among each other are enough: n is small, their length is not.
 */
export function principal(vectors) {
  const count = vectors.length;
  const mean = vectors[0].map((_, place) => vectors.reduce((sum, vector) => sum + vector[place], 0) / count);
  const centred = vectors.map((vector) => vector.map((value, place) => value - mean[place]));
  const products = centred.map((a) => centred.map((b) => dot(a, b)));
  const total = trace(products);
  const scale = vectors.reduce((sum, vector) => sum + dot(vector, vector), 0);
  if (total <= CLOSE * scale) return { places: vectors.map(() => [0, 0]), shares: [0, 0] }; // all vectors are equal
  const first = leading(products, []);
  const second = leading(products, [first.direction]);
  const across = first.direction.map((value) => value * Math.sqrt(first.value));
  const along = second.direction.map((value) => value * Math.sqrt(second.value));
  return { places: across.map((x, place) => [x, along[place]]), shares: [first.value / total, second.value / total] };
}

/** The largest eigenvalue of a symmetric matrix and its direction, orthogonal to given directions: power iteration. */
function leading(matrix, across) {
  const clear = (vector) =>
    across.reduce((rest, other) => rest.map((value, place) => value - dot(rest, other) * other[place]), vector);
  let direction = unit(clear(matrix.map((_, place) => Math.sin(place + 1)))); // an arbitrary but fixed start
  const least = CLOSE * trace(matrix);
  let value = 0;
  for (let round = 0; round < ROUNDS; round += 1) {
    const image = clear(matrix.map((row) => dot(row, direction)));
    const length = Math.sqrt(dot(image, image));
    if (length <= least) return { value: 0, direction };
    direction = image.map((entry) => entry / length);
    if (Math.abs(length - value) <= CLOSE * length) return { value: length, direction };
    value = length;
  }
  return { value, direction };
}
