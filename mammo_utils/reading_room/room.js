// The reading room. The kernel is asked for exams alone: the prediction from every subset of an exam's views comes with
// the exam, so that showing a view needs no answer. Pictures are drawn by `views.js`, which this file follows.

const HELP = [["← →", "exam"], ["1–4", "views"], ["o", "outlines"], ["h", "heat map"], ["c", "contributions"],
  ["i", "invert"], ["f", "full screen"], ["0", "reset"], ["wheel", "zoom"], ["drag", "pan"],
  ["shift or right drag", "window, level"], ["double click", "reset"]];

// A DOM element: attributes, then children. Text is set as text, never as HTML.
function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") node.style.cssText = value;
    else if (name in node && name !== "list") node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

function render({ model, el }) {
  const about = model.get("about");
  const state = { zoom: 1, x: 0, y: 0, invert: false, width: 1, level: 0.5, fixed: false, // by the reader
    outlines: true, heat: false, parts: true, method: Object.keys(about.methods)[0], opacity: 0.6, hidden: new Set(),
    run: about.runs[0].id, runs: new Set(about.runs.filter((run, i) => i === 0 || run.first).map((run) => run.id)) };
  let pictures = {}, planned = false, late = 0, drag = null;

  // --- what is shown --------------------------------------------------------------------------------------
  const exam = () => model.get("answer");
  const entry = () => about.runs.find((run) => run.id === state.run);
  const has = (view) => Boolean(exam().views[about.views.indexOf(view)].image);
  const seen = (view) => has(view) && !state.hidden.has(view);
  const subset = () => about.views.reduce((sum, view, i) => sum + (seen(view) ? 1 << i : 0), 0);
  const predicted = (run) => exam().runs[run]?.[subset()]; // undefined without a view, or if the run lacks the exam
  const breast = (side) => about.views.filter((view) => view[0] === side);

  // --- requests -------------------------------------------------------------------------------------------
  function ask(change) {
    const old = model.get("request");
    model.set("request", { ...old, ...change, number: Math.max(old.number, exam().number) + 1 });
    model.save_changes();
    mark();
    wait();
  }
  function wait() { // the numbers are dim until the kernel has answered
    clearTimeout(late);
    const open = model.get("request").number > exam().number;
    root.classList.toggle("waiting", open);
    status.textContent = open ? "waiting for the kernel …" : exam().error || "";
    if (open) late = setTimeout(() => {
      status.textContent = "The kernel has not answered: it is busy or gone. Shown is the exam before.";
    }, 2500);
  }
  function step(by) {
    const names = model.get("listed").map((row) => row.exam);
    if (!names.length) return;
    const wanted = names.indexOf(model.get("request").exam) + by;
    ask({ exam: names[limit(wanted, 0, names.length - 1)] });
  }
  function toggle(view) {
    if (!has(view)) return;
    state.hidden.has(view) ? state.hidden.delete(view) : state.hidden.add(view);
    update();
  }
  function reset() {
    Object.assign(state, { zoom: 1, x: 0, y: 0, invert: false, fixed: false }, fullWindow(exam().views));
    update();
  }

  // --- drawing --------------------------------------------------------------------------------------------
  function plan() {
    if (!planned) requestAnimationFrame(() => { planned = false; draw(); });
    planned = true;
  }
  function grey(view, stored) {
    const key = [exam().number, state.width, state.level, state.invert].join(" ");
    if (pictures[view]?.key !== key) pictures[view] = { key, canvas: greyPicture(stored, state) };
    return pictures[view].canvas;
  }
  function part(view) { // a breast without a visible image has no prediction, and no contributions to one
    const found = predicted(state.run), i = about.views.indexOf(view);
    if (!found) return null;
    const share = (side, row) => breast(side).some(seen) ? found.shares[row][i] ?? "no sum over views" : "no image";
    return { weight: found.weights[i], shares: { L: share("L", 0), R: share("R", 1) },
      most: Math.max(1e-9, ...found.shares.flat().map((value) => Math.abs(value ?? 0))) };
  }
  function draw() {
    const scale = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
    const [columns, rows] = [Math.round(width * scale), Math.round(height * scale)];
    if (!columns || !rows) return;
    if (canvas.width !== columns || canvas.height !== rows) Object.assign(canvas, { width: columns, height: rows });
    const context = canvas.getContext("2d");
    context.setTransform(scale, 0, 0, scale, 0, 0);
    paintViews(context, width, height, state, (view) => {
      const i = about.views.indexOf(view), stored = exam().views[i];
      return { ...stored, grey: stored.image && grey(view, stored), seen: seen(view), part: part(view),
        map: exam().maps[state.run]?.[i]?.[state.method] };
    });
  }

  // --- the numbers ------------------------------------------------------------------------------------------
  function bar(share, colour, title = "") {
    const fill = make("i", { style: `width:${100 * limit(share ?? 0, 0, 1)}%;background:${colour}` });
    return make("span", { className: "bar", title }, fill);
  }
  function card(side) {
    const found = predicted(state.run), i = "LR".indexOf(side), parts = [];
    const there = breast(side).some(has), shown = breast(side).some(seen);
    if (!shown) parts.push(make("p", { className: "none" },
      there ? "both views hidden: no prediction" : "no image: no prediction"));
    else if (!found) parts.push(make("p", { className: "none" }, "not an exam of this run"));
    else for (const [task, classes] of Object.entries(entry().classes)) {
      const p = found.tasks[task][i];
      if (task === "diagnosis") parts.push(make("div", { className: "lead" },
        make("span", {}, "P(malignant)"), make("b", {}, number(p[1]))), bar(p[1], p[1] > 0.5 ? MORE : "#7bd3a8"));
      else parts.push(make("div", { className: "birads" }, ...classes.map((category, k) => make("div",
        { className: p[k] === Math.max(...p) ? "most" : "", title: `P(BI-RADS ${category}) = ${number(p[k], 3)}` },
        make("span", { className: "post" }, make("i", { style: `height:${100 * p[k]}%` })),
        make("em", {}, number(p[k])), make("small", {}, `BI-RADS ${category}`)))));
    }
    return make("section", { className: "card", "data-side": side },
      make("h4", {}, side === "R" ? "Right breast" : "Left breast"),
      make("p", { className: "truth" }, there ? `label: ${exam().labels[i]}` : "—"), ...parts);
  }
  function weights() {
    const found = predicted(state.run);
    return HANGING.map((view) => {
      const weight = found ? found.weights[about.views.indexOf(view)] : null;
      const note = has(view) ? (seen(view) ? "" : " hidden") : " absent";
      return make("div", { className: "weight" + (note ? " off" : "") },
        make("span", {}, view.replace("_", "-") + note), bar(weight, COLOURS[view]), make("b", {}, number(weight)));
    });
  }
  function runRow(run) {
    const found = predicted(run.id), main = Object.keys(run.classes)[0];
    const p = (side) => {
      const shown = found && breast(side).some(seen);
      const value = shown ? found.tasks[main]["LR".indexOf(side)].at(-1) : null;
      return make("td", {}, bar(value, run.colour), make("b", {}, shown ? number(value) : "–"));
    };
    const gate = HANGING.map((view) => make("i", {
      title: `${view}: α = ${number(found?.weights[about.views.indexOf(view)])}`,
      style: `background:${COLOURS[view]};flex:${found ? found.weights[about.views.indexOf(view)] : 0} 0 0` }));
    const name = make("button", { className: "name", title: `${run.id}${run.stale ? ": stale" : ""}`,
      onclick: () => { state.run = run.id; update(); } }, make("i", { style: `background:${run.colour}` }), run.title);
    return make("tr", { className: run.id === state.run ? "main" : "" },
      make("td", {}, name), make("td", {}, number(run.auc)), p("R"), p("L"),
      make("td", {}, make("span", { className: "gate" }, ...gate)));
  }
  function keepFocus(work) { // an element that is replaced loses the focus, and keys would go to the notebook
    const inside = focused();
    work();
    if (inside && !focused()) root.focus({ preventScroll: true });
  }
  function update() {
    heading.textContent = exam().title;
    cards.replaceChildren(card("R"), card("L"));
    gates.replaceChildren(make("h4", {}, `Weights of ${entry().title}`), ...weights());
    const chosen = about.runs.filter((run) => state.runs.has(run.id) || run.id === state.run);
    keepFocus(() => rows.replaceChildren(...chosen.map(runRow)));
    chips.forEach(({ box, label }, view) => {
      box.checked = seen(view);
      box.disabled = !has(view);
      label.classList.toggle("off", !has(view));
    });
    const maps = exam().maps[state.run], lines = exam().views.some((view) => view.outlines.length);
    for (const [name, control] of Object.entries(switches)) control.setAttribute("aria-pressed", state[name]);
    method.disabled = opacity.disabled = !maps;
    switches.heat.textContent = maps ? "heat map" : "no heat map";
    switches.heat.title = maps ? "" : `${entry().title} has none of this exam: order the list by “heat maps first”`;
    switches.outlines.disabled = !lines;
    switches.outlines.title = lines ? "" : "no lesion is outlined in this exam";
    [wide.value, middle.value, method.value, opacity.value] = [state.width, state.level, state.method, state.opacity];
    plan();
  }
  function fill() { // the list of exams
    const listed = model.get("listed");
    count.textContent = `${listed.length} of ${about.exams} exams`;
    const item = (row) => {
      const labels = ["R", "L"].map((side) => [side, row.classes["LR".indexOf(side)]]).filter(([, label]) => label);
      const words = labels.map((pair) => pair.join(" ")).join(", ") || "no label";
      return make("button", { role: "option", "data-exam": row.exam, onclick: () => ask({ exam: row.exam }) },
        make("span", {}, row.exam), make("small", {}, words + (row.mapped ? ", heat map" : "")),
        row.wrong ? make("mark", {}, "wrong") : null);
    };
    keepFocus(() => list.replaceChildren(...listed.map(item)));
    mark();
  }
  function mark() { // the exam that was asked for last
    for (const item of list.children) {
      const chosen = item.dataset.exam === model.get("request").exam;
      item.setAttribute("aria-selected", chosen);
      const [above, below] = [item.offsetTop - list.scrollTop, item.offsetTop + item.offsetHeight - list.scrollTop];
      if (chosen && (above < 0 || below > list.clientHeight)) list.scrollTop = item.offsetTop - list.clientHeight / 2;
    }
  }

  // --- the page ---------------------------------------------------------------------------------------------
  const root = make("div", { className: "mammo-room", tabIndex: 0, "data-lm-suppress-shortcuts": "true" });
  const heading = make("h3"), status = make("p", { className: "status", role: "status" });
  const cards = make("div", { className: "cards numbers" }), gates = make("div", { className: "gates numbers" });
  const rows = make("tbody"), count = make("p", { className: "count" });
  const list = make("div", { className: "list", role: "listbox", "aria-label": "exams" });
  const canvas = make("canvas", { className: "views", "aria-label": "four views of the exam" });
  const select = (name, first) => make("select", { "aria-label": name, "data-filter": name, onchange: (event) =>
    ask({ filters: { ...model.get("request").filters, [name]: event.target.value } }) },
    ...(first ? [make("option", { value: "" }, first)] : []),
    ...about.options[name].map((value) => make("option", { value }, name === "views" ? `${value} views` : value)));
  const filters = make("div", { className: "filters" }, select("label", "any label"),
    select("finding", "finding on any side"), select("density", "any density"), select("views", "any views"),
    select("order", ""));
  const chips = new Map(HANGING.map((view, i) => {
    const box = make("input", { type: "checkbox", "data-view": view, onchange: () => toggle(view) });
    return [view, { box, label: make("label", { className: "chip", style: `--c:${COLOURS[view]}` }, box,
      make("kbd", {}, i + 1), view.replace("_", "-")) }];
  }));
  const flip = (name) => { if (!switches[name].disabled) { state[name] = !state[name]; update(); } };
  const button = (words, action, title = "") => make("button", { onclick: action, title }, words);
  const switches = { outlines: button("outlines", () => flip("outlines")), parts: button("contributions", () =>
    flip("parts")), invert: button("invert", () => flip("invert")), heat: button("heat map", () => flip("heat")) };
  const slider = (name, low, high) => make("input", { type: "range", min: low, max: high, step: 0.01,
    "aria-label": name, oninput: (event) => {
      Object.assign(state, { [name]: Number(event.target.value), fixed: true });
      plan();
    } });
  const wide = slider("width", 0.05, 2), middle = slider("level", 0, 1), opacity = slider("opacity", 0.05, 1);
  const method = make("select", { "aria-label": "method of the heat map", onchange: (event) => {
    Object.assign(state, { method: event.target.value, heat: true });
    update();
  } }, ...Object.entries(about.methods).map(([value, words]) => make("option", { value }, words)));
  const screen = () => document.fullscreenElement ? document.exitFullscreen() : root.requestFullscreen?.();
  const tools = make("div", { className: "tools" },
    make("div", { className: "group" }, ...[...chips.values()].map(({ label }) => label)),
    make("div", { className: "group" }, switches.outlines, switches.parts, switches.heat, method,
      make("label", { className: "slide" }, "opacity", opacity)),
    make("div", { className: "group" }, make("label", { className: "slide" }, "window", wide),
      make("label", { className: "slide" }, "level", middle), switches.invert, button("reset", reset),
      button("full screen", screen), button("save PNG", save)));
  const picks = make("details", { className: "picks" }, make("summary", {}, "choose runs"),
    ...about.runs.map((run) => make("label", { title: run.id }, make("input", { type: "checkbox",
      checked: state.runs.has(run.id), onchange: (event) => {
        event.target.checked ? state.runs.add(run.id) : state.runs.delete(run.id);
        update();
      } }), run.title)));
  const [task, classes] = Object.entries(about.runs[0].classes)[0];
  const table = make("table", { className: "numbers" }, make("thead", {}, make("tr", {}, make("th", {}, "run"),
    make("th", { title: `over the whole part “${about.part}”` }, "AUC"), make("th", {}, "right"), make("th", {}, "left"), make("th", {}, "weights"))), rows);
  const last = task === "diagnosis" ? "malignant" : `BI-RADS ${classes.at(-1)}`;
  root.append(
    make("header", {}, heading, make("span", { className: "note" }, `${about.note}, part “${about.part}”`), status),
    make("div", { className: "body" },
      make("aside", {}, filters, count, list),
      make("main", {}, canvas, tools),
      make("div", { className: "panel" }, cards, gates,
        make("h4", {}, `P(${last}) by run`), table, picks)),
    make("footer", {}, ...HELP.map(([key, what]) => make("span", {}, make("kbd", {}, key), what)),
      make("em", {}, "Click into the room first: keys and the wheel then belong to it.")));

  function save() { // the canvas as it is, with a line that names exam, cohort, run and prediction
    const copy = make("canvas", { width: canvas.width, height: canvas.height + Math.round(canvas.width / 16) });
    const context = copy.getContext("2d"), scale = canvas.width / canvas.clientWidth, found = predicted(state.run);
    context.fillStyle = "#0d0f13";
    context.fillRect(0, 0, copy.width, copy.height);
    context.drawImage(canvas, 0, 0);
    context.scale(scale, scale);
    const words = ["R", "L"].map((side) => `${side} ${found && breast(side).some(seen)
      ? number(Object.values(found.tasks)[0]["LR".indexOf(side)].at(-1)) : "no prediction"}`).join(", ");
    text(context, `${exam().title} · ${about.note} · ${entry().title}: P(${last}) ${words}`, 10,
      canvas.clientHeight + canvas.clientWidth / 32 + 4, "#c6ced8", "left", 12);
    copy.toBlob((blob) => {
      const link = make("a", { href: URL.createObjectURL(blob), download: `${exam().exam}.png` });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
  }

  // --- mouse and keys ---------------------------------------------------------------------------------------
  const focused = () => root.contains(document.activeElement);
  const cellAt = (event) => {
    const box = canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    return { x, y, cell: cellsOf(box.width, box.height)[(x > box.width / 2) + 2 * (y > box.height / 2)] };
  };
  canvas.addEventListener("pointerdown", (event) => {
    root.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    drag = { window: event.shiftKey || event.button === 2, ...cellAt(event), at: [event.clientX, event.clientY] };
    event.preventDefault();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!drag) return;
    const [dx, dy] = [event.clientX - drag.at[0], event.clientY - drag.at[1]];
    drag.at = [event.clientX, event.clientY];
    if (drag.window) {
      state.width = limit(state.width + dx / 250, 0.05, 2);
      state.level = limit(state.level + dy / 400, 0, 1);
      state.fixed = true;
      [wide.value, middle.value] = [state.width, state.level];
    } else pan(drag.cell.left ? dx : -dx, dy);
    plan();
  });
  const stop = () => { drag = null; };
  canvas.addEventListener("pointerup", stop);
  canvas.addEventListener("pointercancel", stop);
  canvas.addEventListener("contextmenu", (event) => { event.preventDefault(); event.stopPropagation(); });
  canvas.addEventListener("dblclick", reset);
  function pan(dx, dy) { // mirrored in the other breast, and never out of sight
    const w = canvas.clientWidth / 2, h = canvas.clientHeight / 2;
    state.x = limit(state.x + dx, -w * state.zoom * 0.8, w * 0.8);
    state.y = limit(state.y + dy, -h * state.zoom * 0.8, h * 0.8);
  }
  canvas.addEventListener("wheel", (event) => {
    if (!focused()) return; // else the page scrolls
    event.preventDefault();
    event.stopPropagation();
    const { x, y, cell } = cellAt(event), zoom = limit(state.zoom * Math.exp(-event.deltaY / 400), 0.5, 20);
    const from = [cell.left ? x - cell.x : cell.x + cell.w - x, y - cell.y], by = zoom / state.zoom;
    state.zoom = zoom;
    pan((from[0] - state.x) * (1 - by), (from[1] - state.y) * (1 - by));
    plan();
  }, { passive: false });
  const [next, before] = [() => step(1), () => step(-1)];
  const keys = { ArrowRight: next, ArrowDown: next, ArrowLeft: before, ArrowUp: before, o: () => flip("outlines"),
    h: () => flip("heat"), c: () => flip("parts"), i: () => flip("invert"), f: screen, 0: reset };
  HANGING.forEach((view, i) => { keys[i + 1] = () => toggle(view); });
  root.addEventListener("keydown", (event) => {
    event.stopPropagation(); // JupyterLab has other uses for these keys
    const typing = event.target.matches("select, input[type=range]");
    if (!keys[event.key] || typing || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    keys[event.key]();
  });

  function arrived() {
    pictures = {};
    state.hidden.clear();
    if (!state.fixed) Object.assign(state, fullWindow(exam().views));
    fill();
    update();
    wait();
  }
  model.on("change:answer", arrived);
  model.on("change:listed", fill);
  const size = new ResizeObserver(() => { mark(); plan(); });
  size.observe(canvas);
  el.append(root);
  arrived();
  return () => {
    size.disconnect();
    clearTimeout(late);
    model.off("change:answer", arrived);
    model.off("change:listed", fill);
  };
}

export default { render };
