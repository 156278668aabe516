"use strict";

const at = (id) => document.getElementById(id);
const make = (tag, text, props = {}) => Object.assign(document.createElement(tag), { textContent: text ?? "" }, props);
const number = (x, digits = 2) => (x === null || x === undefined ? "unknown" : x.toFixed(digits));

let sent = null; // what was sent last, so that another finding's maps can be asked for
let found = null; // the answer
let finding = null; // whose maps are shown
let pictures = []; // of each image, its decoded picture and map
let asked = 0; // the number of the last request: an answer to an earlier one is dropped
let judged = 0;

// a map's colours: black, purple, orange, yellow, from nothing to the largest
const STOPS = [[0, 0, 4], [40, 11, 84], [101, 21, 110], [159, 42, 99], [212, 72, 66], [245, 125, 21], [250, 193, 39], [252, 255, 164]];
const HEAT = Array.from({ length: 256 }, (_, i) => {
  const x = (i / 255) * (STOPS.length - 1), k = Math.min(Math.floor(x), STOPS.length - 2);
  return STOPS[k].map((a, c) => a + (STOPS[k + 1][c] - a) * (x - k));
});

const counted = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;

function fail(words) {
  at("status").textContent = "";
  at("error").textContent = words;
  at("error").hidden = false;
}

async function predict(what, wanted = "") {
  const mine = ++asked;
  const form = new FormData();
  if (what.sample) form.append("sample", what.sample);
  for (const file of what.files || []) form.append("files", file, file.path || file.webkitRelativePath || file.name);
  form.append("pictures", "true");
  if (wanted) form.append("findings", wanted);
  at("error").hidden = true;
  at("status").textContent = "The model is looking at the study…";
  if (!wanted) at("result").hidden = true;
  try {
    const response = await fetch("/api/predict", { method: "POST", body: form });
    const answer = await response.json();
    if (mine !== asked) return;
    if (!response.ok) return fail(`Not predicted: ${answer.error}`);
    sent = what;
    await show(answer, wanted);
  } catch (error) {
    if (mine === asked) fail("Not predicted: the server did not answer. It may have been stopped, or the files are too large.");
  }
}

const decoded = (url) => new Promise((resolve, reject) => {
  const image = new Image();
  image.onload = () => {
    const canvas = make("canvas", "", { width: image.width, height: image.height });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    resolve(context.getImageData(0, 0, image.width, image.height));
  };
  image.onerror = reject;
  image.src = url;
});

async function show(answer, wanted) {
  found = answer;
  finding = wanted || Object.keys(answer.maps)[0];
  pictures = await Promise.all(answer.images.map(async (image) => ({
    pixels: await decoded(image.picture),
    maps: Object.fromEntries(await Promise.all(Object.entries(image.maps).map(async ([name, url]) => [name, await decoded(url)]))),
  })));
  at("result").hidden = false;
  at("of").textContent = `Result of ${answer.id}${answer.synthetic ? " (synthetic sample)" : ""}`;
  at("warnings").replaceChildren(...answer.warnings.map((words) => make("li", words)));
  const left = answer.skipped.map((of) => make("li", `${of.file}: ${of.reason}`));
  at("left-out").hidden = !left.length;
  at("left-out").querySelector("ul").replaceChildren(...left);
  at("image").max = answer.images.length;
  showFindings();
  pick(finding);
  at("status").textContent = `${counted(answer.images.length, "image")}, ${counted(Object.keys(answer.findings).length, "finding")}.`;
  if (!wanted) at("of").focus();
}

const rate = (metric) => {
  if (!metric || metric.value === null) return [metric?.reason || "unknown", ""];
  const interval = metric.low === null || metric.low === undefined ? "no interval" : `${number(metric.low)} to ${number(metric.high)}`;
  return [number(metric.value), `${interval}, n ${metric.n}`];
};

function showFindings() {
  const name = at("point").value;
  const rows = Object.entries(found.findings).sort((a, b) => b[1].logit - a[1].logit).map(([label, of]) => {
    const row = make("tr"), point = of.points[name];
    const button = make("button", label, { type: "button" });
    button.setAttribute("aria-pressed", label === finding);
    button.dataset.finding = label;
    button.addEventListener("click", () => pick(label));
    const head = make("th");
    head.scope = "row";
    const cell = make("td");
    cell.append(button);
    const p = make("td", number(of.probability, 3));
    p.append(make("meter", "", { value: of.probability, min: 0, max: 1, ariaLabel: `probability of ${label}` }), make("small", of.calibrated ? "calibrated" : "not calibrated"));
    const call = make("td", point.call === null ? "none" : point.call ? "positive" : "negative");
    if (point.call !== null) call.className = point.call ? "positive" : "negative";
    if (point.reason) call.append(make("small", point.reason));
    const cells = [cell, p, call, make("td", number(point.threshold, 3))];
    for (const metric of [point.sensitivity, point.specificity]) {
      const [value, more] = rate(metric), td = make("td", value);
      const where = point.split ? `${more}, ${point.split}${point.selected_on ? ", chosen on it" : ""}` : "";
      td.append(make("small", where));
      cells.push(td);
    }
    row.append(...cells);
    return row;
  });
  at("findings").querySelector("tbody").replaceChildren(...rows);
}

function pick(label) {
  finding = label;
  for (const button of document.querySelectorAll("[data-finding]")) button.setAttribute("aria-pressed", button.dataset.finding === label);
  for (const span of document.querySelectorAll(".shown")) span.textContent = label;
  const threshold = found.findings[label].points[at("point").value].threshold;
  at("threshold").value = threshold === null ? 0.5 : threshold;
  judge();
  if (!(label in found.maps)) return predict(sent, label);
  const order = found.images.map((image, k) => k).sort((a, b) => found.images[b].shares[label] - found.images[a].shares[label]);
  const least = 0.01 * Math.abs(found.images[order[0]].shares[label]); // of less nothing is seen, but for the first three
  const most = order.filter((k, place) => place < 3 || found.images[k].shares[label] >= least).slice(0, 12);
  at("decisive").replaceChildren(...most.map((k) => {
    const image = found.images[k], item = make("li"), button = make("button", "", { type: "button" });
    button.dataset.image = k;
    button.append(make("img", "", { src: image.picture, alt: "" }), make("span", title(image)), make("span", `adds ${signed(image.shares[label])}`));
    button.addEventListener("click", () => turnTo(k));
    item.append(button);
    return item;
  }));
  turnTo(order[0]);
}

const signed = (x) => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(3);
const title = (image) => (image.slice ? `slice ${image.slice}, ${image.name}` : image.name);

function turnTo(k) {
  at("image").value = k + 1;
  draw();
}

function draw() {
  const k = at("image").value - 1, image = found.images[k], { pixels, maps } = pictures[k];
  const map = maps[finding], canvas = at("canvas");
  canvas.width = pixels.width;
  canvas.height = pixels.height;
  const opacity = Number(at("overlay").value), centre = Number(at("centre").value), width = Number(at("width").value);
  const invert = at("invert").checked, out = new ImageData(pixels.width, pixels.height);
  for (let i = 0; i < pixels.data.length; i += 4) {
    const level = map ? map.data[i] : 0, alpha = (opacity * level) / 255;
    for (let c = 0; c < 3; c++) {
      let value = Math.min(Math.max(((pixels.data[i + c] - centre + 0.5) / (width - 1) + 0.5) * 255, 0), 255);
      if (invert) value = 255 - value;
      out.data[i + c] = value * (1 - alpha) + HEAT[level][c] * alpha;
    }
    out.data[i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(out, 0, 0);
  const words = `${title(image)}, ${k + 1} of ${found.images.length}, adds ${signed(image.shares[finding] ?? 0)} to ${finding}`;
  canvas.setAttribute("aria-label", words);
  at("image-value").textContent = `${k + 1} of ${found.images.length}`;
  at("image").setAttribute("aria-valuetext", words);
  for (const id of ["overlay", "centre", "width"]) at(`${id}-value`).textContent = at(id).value;
  for (const button of document.querySelectorAll("[data-image]")) button.setAttribute("aria-current", Number(button.dataset.image) === k);
}

async function judge() {
  const mine = ++judged, threshold = Number(at("threshold").value), of = found.findings[finding];
  at("threshold-value").textContent = threshold.toFixed(3);
  const query = new URLSearchParams({ finding, threshold });
  let words = "";
  try {
    const answer = await (await fetch(`/api/threshold?${query}`)).json();
    if (answer.split) {
      const [se, seMore] = rate(answer.sensitivity), [sp, spMore] = rate(answer.specificity), c = answer.confusion;
      words = `On ${answer.split} (n ${answer.n}) it would have called ${c.tp} of ${c.tp + c.fn} positive studies and ${c.fp} of ${c.fp + c.tn} negative ones positive: sensitivity ${se} (${seMore}), specificity ${sp} (${spMore}).`;
    } else words = `What it would have done on validation is unknown: ${answer.reason || answer.error}.`;
  } catch { words = "The server did not answer."; }
  if (mine !== judged) return;
  at("would").textContent = `This study would be called ${of.probability >= threshold ? "positive" : "negative"}. ${words}`;
}

let waiting = 0;
at("threshold").addEventListener("input", () => {
  at("threshold-value").textContent = Number(at("threshold").value).toFixed(3);
  clearTimeout(waiting);
  waiting = setTimeout(judge, 120);
});
at("point").addEventListener("change", () => { showFindings(); at("threshold").value = found.findings[finding].points[at("point").value].threshold ?? 0.5; judge(); });
for (const id of ["image", "overlay", "centre", "width", "invert"]) at(id).addEventListener("input", draw);
at("reset").addEventListener("click", () => { at("centre").value = 128; at("width").value = 256; at("invert").checked = false; draw(); });
for (const id of ["files", "folder"]) at(id).addEventListener("change", (event) => {
  if (event.target.files.length) predict({ files: [...event.target.files] });
});
at("form").addEventListener("submit", (event) => event.preventDefault());
at("sample").addEventListener("change", (event) => { if (event.target.value) predict({ sample: event.target.value }); });

async function walk(entry, path) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    file.path = path + entry.name;
    return [file];
  }
  const reader = entry.createReader(), files = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return files;
    for (const one of some) files.push(...await walk(one, `${path}${entry.name}/`));
  }
}
const drop = at("drop");
drop.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", async (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const files = entries.length ? (await Promise.all(entries.map((entry) => walk(entry, "")))).flat() : [...event.dataTransfer.files];
  if (files.length) predict({ files });
});

(async () => {
  try {
    const { samples } = await (await fetch("/api/samples")).json();
    at("sample").append(...samples.map((of) => make("option", `${of.name}: drawn with ${of.findings.join(", ") || "no finding"}`, { value: of.name })));
    at("samples").hidden = !samples.length;
  } catch { /* without samples the page works as well */ }
})();
