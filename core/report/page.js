
"use strict";
const all = (root, selector) => [...root.querySelectorAll(selector)];
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const round = (value) => value == null ? "–" : Number.isInteger(value) ? value.toLocaleString("en") : Number(value.toPrecision(4)).toString();
const clock = (seconds) => {
  const tenths = Math.round(seconds * 10), minutes = Math.floor(tenths / 600), rest = tenths % 600;
  const pad = (value) => String(value).padStart(2, "0");
  const start = minutes >= 60 ? `${Math.floor(minutes / 60)}:${pad(minutes % 60)}` : `${minutes}`;
  return `${start}:${pad(Math.floor(rest / 10))}.${rest % 10}`;
};
const node = (name, text = "", attributes = {}) => {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
};

const tip = document.querySelector(".tip");
function showTip(event, parts) {
  tip.replaceChildren(...parts);
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = event.clientX + 16 + box.width > innerWidth ? event.clientX - 16 - box.width : event.clientX + 16;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${clamp(event.clientY + 14, 4, innerHeight - box.height - 4)}px`;
}
const hideTip = () => { tip.hidden = true; };
const pair = (name, value) => {
  const line = node("div");
  line.append(node("span", name), node("b", value));
  return line;
};

// Tables: sort by click, filter by words, leave as CSV.
for (const root of all(document, ".table")) {
  const body = root.querySelector("tbody"), heads = all(root, "th"), rows = [...body.rows];
  const value = (cell) => cell.dataset.value ?? cell.textContent;
  heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
    const number = head.classList.contains("number");
    const first = number ? "descending" : "ascending", second = number ? "ascending" : "descending";
    const order = head.getAttribute("aria-sort") === first ? second : first;
    heads.forEach((other) => other.setAttribute("aria-sort", other === head ? order : "none"));
    const sign = order === "ascending" ? 1 : -1;
    body.append(...rows.map((row, i) => [value(row.cells[column]), i, row]).sort(([a, i], [b, j]) => {
      if ((a === "") !== (b === "")) return a === "" ? 1 : -1;
      const order = number ? Number(a.replace("inf", "Infinity")) - Number(b.replace("inf", "Infinity"))
        : a.localeCompare(b, "en", {numeric: true});
      return sign * order || i - j;
    }).map(([, , row]) => row));
  }));
  root.querySelector(".filter")?.addEventListener("input", (event) => {
    const words = event.target.value.toLowerCase().split(/\s+/);
    for (const row of rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
  });
  const csv = () => {
    const quoted = (cell) => /[",\n\r]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell;
    const lines = [heads.map((head) => head.textContent), ...[...body.rows].filter((row) => !row.hidden).map((row) => [...row.cells].map(value))];
    return lines.map((line) => line.map(quoted).join(",")).join("\r\n") + "\r\n";
  };
  const said = (button, words) => {
    const before = button.textContent;
    button.textContent = words;
    setTimeout(() => { button.textContent = before; }, 1400);
  };
  root.querySelector(".copy").addEventListener("click", async (event) => {
    const area = node("textarea", "", {class: "unseen"});
    area.value = csv();
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");  // works in pages opened from disk, where the clipboard object is missing
    area.remove();
    said(event.target, done ? "Copied" : "Could not copy");
  });
  root.querySelector(".download").addEventListener("click", () => {
    const name = root.dataset.name.replace(/[^\p{L}\p{N}]+/gu, "_").toLowerCase() || "table";
    const link = node("a", "", {href: URL.createObjectURL(new Blob(["\ufeff", csv()], {type: "text/csv"})), download: `${name}.csv`});
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
}

// Charts: the values under the pointer; a press in the legend hides a line.
for (const root of all(document, ".chart")) {
  const chart = JSON.parse(root.dataset.chart), plot = root.querySelector(".plot"), cross = root.querySelector(".cross");
  const [left, top, width, height] = chart.box, [low, high] = chart.x;
  const buttons = all(root, ".legend button");
  buttons.forEach((button, i) => button.addEventListener("click", () => {
    const on = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", on);
    for (const line of all(root, `[id$="-series-${i}"], [id$="-raw-${i}"]`)) line.style.visibility = on ? "" : "hidden";
  }));
  const nearest = (xs, x) => {
    let best = -1;
    xs.forEach((value, i) => { if (value != null && (best < 0 || Math.abs(value - x) < Math.abs(xs[best] - x))) best = i; });
    return best;
  };
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const share = ((event.clientX - box.left) / box.width - left) / width;
    const on = chart.series.filter((_, i) => buttons[i].getAttribute("aria-pressed") === "true");
    if (share < -0.02 || share > 1.02 || !on.length) { cross.hidden = true; hideTip(); return; }
    const x = low + clamp(share, 0, 1) * (high - low);
    const found = on.map((line) => [line, nearest(line.x, x)]).filter(([, i]) => i >= 0);
    if (!found.length) return;
    const at = found.map(([line, i]) => line.x[i]).reduce((a, b) => Math.abs(b - x) < Math.abs(a - x) ? b : a);
    Object.assign(cross.style, {left: `${100 * (left + (at - low) / (high - low) * width)}%`, top: `${100 * top}%`, height: `${100 * height}%`});
    cross.hidden = false;
    const step = (high - low) / 60;
    showTip(event, [node("b", round(at)), ...found.filter(([line, i]) => Math.abs(line.x[i] - at) <= step)
      .map(([line, i]) => pair(line.name, round(line.y[i])))]);
  });
  plot.addEventListener("pointerleave", () => { cross.hidden = true; hideTip(); });
}

// Pictures: filter by caption, enlarge in a dialog.
const enlarged = node("dialog");
document.body.append(enlarged);
enlarged.addEventListener("click", () => enlarged.close());
for (const root of all(document, ".pictures")) {
  const cards = all(root, ".card"), count = root.querySelector(".count"), none = root.querySelector(".notice");
  root.querySelector(".filter")?.addEventListener("input", (event) => {
    const words = event.target.value.toLowerCase().split(/\s+/);
    for (const card of cards) card.hidden = !words.every((word) => card.querySelector("figcaption").textContent.toLowerCase().includes(word));
    const shown = cards.filter((card) => !card.hidden).length;
    count.textContent = event.target.value ? `${shown} of ${cards.length}` : "";
    none.hidden = shown > 0;
  });
  root.addEventListener("click", (event) => {
    const image = event.target.closest(".picture")?.querySelector("img");
    if (!image) return;
    enlarged.replaceChildren(node("img", "", {src: image.src, alt: image.alt}), node("p", image.alt));
    if (image.naturalWidth <= 128) enlarged.firstChild.style.imageRendering = "pixelated";
    enlarged.showModal();
  });
}

// Confusion matrices: the cell under the pointer or the arrow keys, in words.
for (const root of all(document, ".confusion")) {
  const {classes, cells, rows, cell, left, top} = JSON.parse(root.dataset.confusion);
  const svg = root.querySelector("svg"), picked = root.querySelector(".picked"), status = root.querySelector("[role=status]");
  const counts = new Map(cells.map(([i, j, count]) => [i * classes.length + j, count]));
  const rowLabels = all(svg, ".row"), columnLabels = all(svg, ".column"), n = classes.length;
  let at = [0, 0];
  const words = () => {
    const count = counts.get(at[0] * n + at[1]) ?? 0, share = rows[at[0]] >= 1e-9 ? (100 * count / rows[at[0]]).toFixed(1) : "–";
    return [classes[at[0]], classes[at[1]], `${round(count)} of ${round(Math.round(rows[at[0]] * 1000) / 1000)} (${share} %)`];
  };
  const pick = (i, j) => {
    at = [clamp(i, 0, n - 1), clamp(j, 0, n - 1)];
    const [x, y] = [left + at[1] * cell, top + at[0] * cell];
    const set = (name, box) => Object.entries(box).forEach(([key, value]) => picked.querySelector(name).setAttribute(key, value));
    set(".across", {x: left, y, width: n * cell, height: cell});
    set(".down", {x, y: top, width: cell, height: n * cell});
    set("rect.cell", {x, y, width: cell, height: cell});
    picked.removeAttribute("hidden");
    rowLabels.forEach((label, k) => label.classList.toggle("on", k === at[0]));
    columnLabels.forEach((label, k) => label.classList.toggle("on", k === at[1]));
  };
  const leave = () => {
    picked.setAttribute("hidden", "");
    [...rowLabels, ...columnLabels].forEach((label) => label.classList.remove("on"));
    hideTip();
  };
  const explain = (event) => {
    const [truth, prediction, count] = words();
    showTip(event, [pair("truth", truth), pair("predicted", prediction), pair("count", count)]);
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
    const j = Math.floor(((event.clientX - box.left) * scale - left) / cell), i = Math.floor(((event.clientY - box.top) * scale - top) / cell);
    if (i < 0 || j < 0 || i >= n || j >= n) { leave(); return; }
    pick(i, j);
    explain(event);
  });
  svg.addEventListener("pointerleave", leave);
  root.querySelector(".scroll").addEventListener("keydown", (event) => {
    const move = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[event.key];
    if (event.key === "Escape") leave();
    if (!move) return;
    event.preventDefault();
    pick(at[0] + move[0], at[1] + move[1]);
    const box = picked.querySelector("rect.cell").getBoundingClientRect();
    explain({clientX: box.right, clientY: box.bottom});
    const [truth, prediction, count] = words();
    status.textContent = `truth ${truth}, predicted ${prediction}: ${count}`;
  });
  root.querySelector(".scroll").addEventListener("blur", leave);
}

// Timelines: one cursor for the video, the tracks and the list of what happens now.
for (const root of all(document, ".timeline")) {
  const duration = Number(root.dataset.duration), player = root.querySelector("video");
  const view = root.querySelector(".view"), canvas = root.querySelector(".canvas"), cursor = root.querySelector(".cursor");
  const axis = root.querySelector(".axis"), shown = root.querySelector(".clock b"), lists = all(root, ".now-track ul");
  const hues = new Map(all(root, ".legend button").map((button) => [button.dataset.label, button.style.getPropertyValue("--hue")]));
  const tracks = all(root, ".track").map((track) => ({
    curves: track.dataset.curves ? JSON.parse(track.dataset.curves) : null,
    segments: all(track, ".segment").map((element) => ({element, start: Number(element.dataset.start), end: Number(element.dataset.end),
      label: element.dataset.label, score: element.dataset.score === undefined ? null : Number(element.dataset.score), kept: true})),
  }));
  const segments = tracks.flatMap((track) => track.segments);
  let time = 0, zoom = 1;

  const line = (label, value) => {
    const made = node("li");
    made.style.setProperty("--hue", hues.get(label));
    made.append(node("span", label), node("b", value == null ? "" : value.toFixed(2)));
    return made;
  };
  const happening = ({curves, segments}) => {
    if (!curves) return segments.filter((one) => one.kept && one.start <= time && (time < one.end || one.end === one.start && time === one.start))
      .sort((a, b) => (b.score ?? 0) - (a.score ?? 0)).map((one) => [one.label, one.score]);
    let i = curves.times.findLastIndex((at) => at <= time + 1e-6);
    i = Math.max(i, 0);
    return Object.entries(curves.values).map(([label, values]) => [label, values[i]]).filter(([, value]) => value != null)
      .sort((a, b) => b[1] - a[1]).slice(0, 5);
  };
  const draw = () => {
    cursor.style.left = `${100 * time / duration}%`;
    shown.textContent = clock(time);
    view.setAttribute("aria-valuenow", time.toFixed(1));
    tracks.forEach((track, i) => {
      const now = happening(track).slice(0, 6);
      lists[i].replaceChildren(...now.map(([label, value]) => line(label, value)));
      if (!now.length) lists[i].append(node("li", "–", {class: "quiet"}));
    });
    for (const one of segments) one.element.classList.toggle("on", one.start <= time && time < one.end);
  };
  const follow = () => {
    const x = time / duration * canvas.clientWidth;
    if (x < view.scrollLeft || x > view.scrollLeft + view.clientWidth) view.scrollLeft = x - view.clientWidth * 0.2;
  };
  const seek = (to) => {
    time = clamp(to, 0, duration);
    if (player) player.currentTime = Math.min(time, Number.isFinite(player.duration) ? player.duration : time);
    draw();
    follow();
    view.setAttribute("aria-valuetext", [clock(time), ...tracks.flatMap((track) => happening(track).slice(0, 2).map(([label]) => label))].join(", "));
  };
  const ticks = () => {
    const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600].find((one) => one / duration * canvas.clientWidth >= 76) ?? 7200;
    const marks = [];
    for (let i = 0; i * step < duration; i++) {
      const mark = node("span", step < 1 ? clock(i * step) : clock(i * step).slice(0, -2));
      mark.style.left = `${100 * i * step / duration}%`;
      marks.push(mark);
    }
    if (marks.length < 4000) axis.replaceChildren(...marks);
  };
  const zoomTo = (wanted, around = time) => {
    const before = around / duration * canvas.clientWidth - view.scrollLeft;
    zoom = clamp(wanted, 1, Math.max(1, duration * 400 / view.clientWidth));
    canvas.style.width = `${100 * zoom}%`;
    view.scrollLeft = around / duration * canvas.clientWidth - clamp(before, 0, view.clientWidth);
    ticks();
  };
  const neighbor = (direction) => {
    const starts = [...new Set(segments.filter((one) => one.kept).map((one) => one.start))].sort((a, b) => a - b);
    const next = direction > 0 ? starts.find((start) => start > time + 0.02) : starts.findLast((start) => start < time - 0.02);
    if (next !== undefined) seek(next);
  };
  const toggle = () => { if (player) player.paused ? player.play() : player.pause(); };
  const actions = {previous: () => neighbor(-1), next: () => neighbor(1), in: () => zoomTo(zoom * 2), out: () => zoomTo(zoom / 2), fit: () => zoomTo(1)};
  for (const button of all(root, "[data-do]")) button.addEventListener("click", () => actions[button.dataset.do]());

  const timeAt = (event) => (event.clientX - canvas.getBoundingClientRect().left) / canvas.clientWidth * duration;
  let dragging = false;
  view.addEventListener("pointerdown", (event) => {
    if (event.button || event.clientY > view.getBoundingClientRect().top + view.clientHeight) return;  // the scroll bar scrolls
    dragging = event.pointerType === "mouse";
    if (dragging) { view.setPointerCapture(event.pointerId); seek(timeAt(event)); }
  });
  view.addEventListener("click", (event) => { if (!dragging) seek(timeAt(event)); });
  view.addEventListener("pointermove", (event) => { if (dragging && event.buttons) seek(timeAt(event)); });
  view.addEventListener("pointerup", () => setTimeout(() => { dragging = false; }));
  view.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    zoomTo(zoom * Math.exp(-event.deltaY / 300), timeAt(event));
  }, {passive: false});
  root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, summary, .table *")) return;
    const step = event.shiftKey ? 10 : 1, onView = event.target === view;
    const action = {
      ArrowRight: () => seek(time + step), ArrowLeft: () => seek(time - step), Home: () => seek(0), End: () => seek(duration), " ": toggle,
    }[onView ? event.key : ""] ?? {
      n: actions.next, p: actions.previous, "+": actions.in, "=": actions.in, "-": actions.out, 0: actions.fit,
    }[event.key.toLowerCase()];
    if (!action) return;
    event.preventDefault();
    action();
  });

  const range = root.querySelector(".threshold input");
  range?.addEventListener("input", () => {
    root.querySelector(".threshold output").textContent = Number(range.value).toFixed(2);
    for (const one of segments) {
      one.kept = one.score == null || one.score >= Number(range.value) - 1e-9;
      one.element.hidden = !one.kept;
    }
    draw();
  });
  let alone = null;
  for (const button of all(root, ".legend button")) button.addEventListener("click", () => {
    alone = alone === button.dataset.label ? null : button.dataset.label;
    for (const other of all(root, ".legend button")) other.setAttribute("aria-pressed", other.dataset.label === alone);
    for (const element of all(root, ".segment, .curves path")) element.classList.toggle("dim", alone !== null && element.dataset.label !== alone);
  });

  if (player) {
    const tick = () => {
      time = clamp(player.currentTime, 0, duration);
      draw();
      follow();
      if (!player.paused && !player.ended) requestAnimationFrame(tick);
    };
    player.addEventListener("play", tick);
    player.addEventListener("seeked", () => { if (player.paused && Math.abs(player.currentTime - time) > 0.05) tick(); });
  }
  new ResizeObserver(ticks).observe(view);
  draw();
}

// Browsers seek in a blob more reliably than in a data URI.
for (const player of all(document, 'video[src^="data:"]')) {
  fetch(player.src).then((answer) => answer.blob()).then((blob) => { player.src = URL.createObjectURL(blob); }).catch(() => {});
}
