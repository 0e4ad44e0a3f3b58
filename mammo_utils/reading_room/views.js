// The four views on a canvas: hanging, window, outlines, heat maps and contributions. The widget's script is this file
// followed by `room.js`.

const HANGING = ["R_CC", "L_CC", "R_MLO", "L_MLO"]; // chest walls meet in the middle; keys 1 to 4
const COLOURS = { L_CC: "#4aa3e0", L_MLO: "#8fd0f5", R_CC: "#f07f3c", R_MLO: "#f2b544" };
const MORE = "#ff8f6b", LESS = "#6fb7ff", LINE = "#7fe3ff", DIM = "#8b95a3", ORANGE = "#ffb36b";

const bytesOf = (view) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
const number = (value, digits = 2) => (value === null || value === undefined ? "–" : value.toFixed(digits));
const limit = (value, low, high) => Math.min(high, Math.max(low, value));

function signed(value) {
  const size = Math.abs(value).toFixed(2);
  return (Number(size) === 0 ? "" : value < 0 ? "−" : "+") + size;
}

// Pixels (columns × rows) on a canvas of their own; `colour(value)` gives red, green, blue and alpha.
function picture(values, columns, rows, colour) {
  const canvas = Object.assign(document.createElement("canvas"), { width: columns, height: rows });
  const context = canvas.getContext("2d"), data = context.createImageData(columns, rows);
  const table = new Uint32Array(new Uint8Array(Array.from({ length: 256 }, (_, value) => colour(value)).flat()).buffer);
  const pixels = new Uint32Array(data.data.buffer);
  for (let i = 0; i < values.length; i += 1) pixels[i] = table[values[i]];
  context.putImageData(data, 0, 0);
  return canvas;
}

// The window that shows all but the brightest 0.2 % of the pixels that are not air.
function fullWindow(views) {
  const counts = new Array(256).fill(0);
  for (const { image } of views) if (image) for (const value of bytesOf(image)) counts[value] += 1;
  let above = 0, brightest = 255;
  const rare = 0.002 * counts.slice(1).reduce((sum, count) => sum + count, 0);
  while (brightest > 1 && above + counts[brightest] <= rare) above += counts[brightest--];
  return { width: brightest / 255, level: brightest / 510 };
}

function greyPicture({ image, side }, { width, level, invert }) {
  const shade = (value) => {
    const share = limit((value / 255 - level + width / 2) / width, 0, 1);
    const grey = Math.round(255 * (invert ? 1 - share : share));
    return [grey, grey, grey, 255];
  };
  return picture(bytesOf(image), side, side, shade);
}

function text(context, words, x, y, colour, align, size = 12, weight = 400) {
  context.font = `${weight} ${size}px system-ui, sans-serif`;
  context.textAlign = align;
  context.shadowColor = "#000";
  context.shadowBlur = 3;
  context.fillStyle = colour;
  context.fillText(words, x, y);
  context.shadowBlur = 0;
}

// The cells of the four views on a canvas of this size.
function cellsOf(width, height) {
  const w = width / 2, h = height / 2;
  return HANGING.map((view, i) => ({ view, left: view[0] === "L", x: (i % 2) * w, y: Math.floor(i / 2) * h, w, h }));
}

// Paint the views. `look` has zoom, x, y, outlines, parts, heat and opacity; `of(view)` has the view's image, aspect,
// outlines, grey picture, heat map, whether it is seen, and its part in the prediction.
function paintViews(context, width, height, look, of) {
  context.fillStyle = "#000";
  context.fillRect(0, 0, width, height);
  cellsOf(width, height).forEach((cell) => {
    const view = of(cell.view);
    if (!view.image) return paintAbsent(context, cell);
    paintPicture(context, cell, look, view);
    paintLabels(context, cell, look, view);
    if (look.parts && view.part && view.seen) paintPart(context, cell, view.part);
  });
  context.fillStyle = "#2a2f37";
  context.fillRect(width / 2 - 0.5, 0, 1, height);
  context.fillRect(0, height / 2 - 0.5, width, 1);
}

function paintAbsent(context, { view, x, y, w, h }) {
  context.strokeStyle = "#3a4049";
  context.setLineDash([5, 5]);
  context.strokeRect(x + 14.5, y + 14.5, w - 29, h - 29);
  context.setLineDash([]);
  text(context, view.replace("_", "-"), x + w / 2, y + h / 2 - 6, DIM, "center", 15, 600);
  text(context, "no image", x + w / 2, y + h / 2 + 14, DIM, "center");
}

function paintPicture(context, { left, x, y, w, h }, look, { grey, aspect, seen, map, outlines }) {
  const fitted = Math.min(h, w / aspect), high = fitted * look.zoom, wide = high * aspect;
  context.save();
  context.beginPath();
  context.rect(x, y, w, h);
  context.clip();
  // from the chest wall outwards and from the top down: a right breast, stored mirrored, is turned back here
  context.translate(left ? x : x + w, y + (h - fitted) / 2);
  context.scale(left ? 1 : -1, 1);
  context.translate(look.x, look.y);
  context.globalAlpha = seen ? 1 : 0.16;
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  context.drawImage(grey, 0, 0, wide, high);
  context.globalAlpha = 1;
  if (look.heat && map && seen) {
    const heat = (value) => [255, Math.round(60 + 0.7 * value), 20, Math.round(value * look.opacity)];
    context.imageSmoothingEnabled = false; // in the map's own cells
    context.drawImage(picture(bytesOf(map.values), map.columns, map.rows, heat), 0, 0, wide, high);
  }
  context.strokeStyle = LINE;
  context.lineWidth = 1.6;
  for (const { points } of look.outlines ? outlines : []) {
    context.beginPath();
    points.forEach(([u, v]) => context.lineTo(u * wide, v * high));
    context.closePath();
    context.stroke();
  }
  context.restore();
}

function paintLabels(context, { view, left, x, y, w, h }, look, { outlines, map, seen }) {
  const outer = left ? x + w - 12 : x + 12, align = left ? "right" : "left";
  text(context, view.replace("_", "-"), outer, y + 21, seen ? "#fff" : DIM, align, 14, 650);
  const lines = look.outlines && outlines.length ? [[outlines.map((line) => line.kind).join(", "), LINE]] : [];
  if (look.heat && seen) lines.push([map ? `${map.columns} × ${map.rows} cells` : "no heat map", ORANGE]);
  lines.forEach(([words, colour], i) => text(context, words, outer, y + 38 + 15 * i, colour, align, 11));
  if (!seen) text(context, "hidden from the system", x + w / 2, y + h / 2, "#c6ced8", "center", 13);
}

// What the view contributes to the log-odds of either breast: bars from the middle, on one scale for all views.
function paintPart(context, { view, left, x, y, w, h }, { weight, shares, most }) {
  const start = left ? x + w - 188 : x + 12, middle = start + 96;
  context.fillStyle = "rgba(10, 12, 16, 0.72)";
  context.fillRect(start - 6, y + h - 62, 188, 56);
  text(context, `weight α ${number(weight)}`, start, y + h - 46, COLOURS[view], "left", 12, 600);
  ["R", "L"].forEach((side, row) => {
    const share = shares[side], line = y + h - 29 + 16 * row;
    text(context, side === "R" ? "to right" : "to left", start, line, "#b8c1cc", "left", 11);
    if (typeof share === "string") return text(context, share, start + 176, line, DIM, "right", 11);
    context.fillStyle = "#4a525d";
    context.fillRect(middle, line - 9, 1, 11);
    context.fillStyle = share < 0 ? LESS : MORE;
    const bar = (share / most) * 34;
    context.fillRect(Math.min(middle, middle + bar), line - 7, Math.abs(bar), 7);
    const words = signed(share), colour = words === "0.00" ? DIM : share < 0 ? LESS : MORE;
    text(context, words, start + 176, line, colour, "right", 11);
  });
}
