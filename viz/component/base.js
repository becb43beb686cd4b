// Shared by all views: elements, numbers, colours and packed arrays.

function element(tag, attributes, parent, text) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

// Hear the keys of what has the focus inside a node, before the page does: the dashboard has arrow
// keys of its own. Returns a function that stops it.
function listen(node, handle) {
  const heard = (event) => {
    if (!event.composedPath().includes(node) || !handle(event)) return;
    event.preventDefault();
    event.stopImmediatePropagation();
  };
  window.addEventListener("keydown", heard, true);
  return () => window.removeEventListener("keydown", heard, true);
}

// As headscope.kernels.formatting.amount: three significant digits, whole numbers from 100.
function amount(value) {
  if (!Number.isFinite(value)) return "not measured";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 100 && size < 1e6) return value.toFixed(0);
  const [digits, exponent] = value.toExponential(2).split("e");
  if (exponent >= -4 && exponent < 3) return value.toFixed(Math.max(0, 2 - exponent));
  return `${digits}e${exponent < 0 ? "-" : "+"}${String(Math.abs(exponent)).padStart(2, "0")}`;
}

// Base64 of a zlib stream of little-endian numbers, as headscope.viz.component.view.packed.
async function unpack(text, Type) {
  if (text == null) return null;
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Type(await new Response(stream).arrayBuffer());
}

// The colour of the text says whether the page is dark; notebooks, Streamlit and files set it.
function ink(node) {
  const context = element("canvas", { width: 1, height: 1 }).getContext("2d");
  context.fillStyle = getComputedStyle(node).color;
  context.fillRect(0, 0, 1, 1);
  const [red, green, blue] = context.getImageData(0, 0, 1, 1).data;
  const dark = 0.299 * red + 0.587 * green + 0.114 * blue > 127;
  return { css: `rgb(${red}, ${green}, ${blue})`, dark };
}

// Weights are one hue over the page: no weight is the page itself.
const weightColour = (dark) => (dark ? [150, 200, 255] : [8, 48, 107]);

function mix(stops, share) {
  const place = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
  const at = Math.min(Math.floor(place), stops.length - 2);
  return stops[at].map((low, i) => Math.round(low + (stops[at + 1][i] - low) * (place - at)));
}

const css = (rgb, alpha = 1) => `rgba(${rgb.join(", ")}, ${alpha})`;

function hatch(context, dark) {
  const tile = element("canvas", { width: 6, height: 6 });
  const pen = tile.getContext("2d");
  pen.strokeStyle = dark ? "rgba(255, 255, 255, 0.28)" : "rgba(0, 0, 0, 0.22)";
  for (const shift of [-6, 0, 6]) {
    pen.moveTo(shift, 6);
    pen.lineTo(shift + 6, 0);
  }
  pen.stroke();
  return context.createPattern(tile, "repeat");
}

// A bar from one end of a scale to the other, and a hatched swatch for what has no value.
function legend(parent, stops, ends, hatched) {
  parent.replaceChildren();
  if (stops) {
    const scale = element("span", { class: "scale" }, parent, ends[0]);
    const bar = element("span", { class: "bar" }, scale);
    bar.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
    scale.append(ends[1]);
  }
  for (const words of hatched) {
    const swatch = element("span", { class: "scale" }, parent);
    element("span", { class: "hatched" }, swatch);
    swatch.append(words);
  }
}
