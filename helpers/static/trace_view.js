// Draws a scene of helpers/trace_scene.py into `root` and lets the reader scrub through its steps.
// No library, no network, no kernel. Text from the scene only ever becomes text, never markup.
function traceView(root, scene) {
  const SVG = "http://www.w3.org/2000/svg", WIDTH = 700, LEFT = 56, RIGHT = 12, LEGEND = 15;
  const blue = "#0072B2", orange = "#E69F00", vermillion = "#D55E00", grey = "#6b7075";
  const rows = scene.requests.length, blocks = scene.blocks - 1, steps = scene.end - scene.first;
  const rowHeight = rows > 24 ? 9 : 15, blockHeight = Math.max(2.5, Math.min(11, 240 / blocks));
  const own = root.id || (root.id = "trace-" + Math.random().toString(36).slice(2)); // patterns need a name of their own
  const x = step => LEFT + (step - scene.first) / steps * (WIDTH - LEFT - RIGHT);
  const uses = step => scene.use.find(u => u[0] <= step && step < u[1]);
  let chosen = null, now = scene.first;

  function make(parent, name, attributes = {}, text = null) {
    const node = parent.namespaceURI === SVG || name === "svg"
      ? document.createElementNS(SVG, name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== null) node.textContent = text;
    parent.appendChild(node);
    return node;
  }
  const label = (parent, at, y, text, more = {}) =>
    make(parent, "text", {x: at, y, "font-size": 10, fill: "#333", ...more}, text);

  function pattern(defs, id, back, draw) {
    const tile = make(defs, "pattern", {id: `${own}-${id}`, width: 6, height: 6, patternUnits: "userSpaceOnUse"});
    make(tile, "rect", {width: 6, height: 6, fill: back});
    draw(tile);
  }
  const stripes = color => tile => make(tile, "path", {d: "M-1,1l2,-2M0,6l6,-6M5,7l2,-2", stroke: color, "stroke-width": 1.4});
  const url = id => `url(#${own}-${id})`;
  const fill = i => scene.requests[i].striped ? url("request" + i) : scene.requests[i].color;

  // ---- what stands still: requests, blocks, cache, queue, all over the same steps
  function panel(svg, top, height, name) {
    label(svg, 12, top + height / 2, name, {transform: `rotate(-90 12 ${top + height / 2})`, "text-anchor": "middle"});
    make(svg, "path", {d: `M${LEFT},${top}V${top + height}H${WIDTH - RIGHT}`, fill: "none", stroke: "#333"});
    return make(svg, "g");
  }
  function legend(svg, top, entries) {
    let right = WIDTH - RIGHT;
    for (const [color, text] of entries.reverse()) {
      label(svg, right, top - 4, text, {"text-anchor": "end"});
      right -= 4.7 * text.length + 18;
      make(svg, "rect", {x: right, y: top - 12, width: 12, height: 8, fill: color});
      right -= 10;
    }
  }
  function drawRequests(svg, top) {
    const group = panel(svg, top, rows * rowHeight, "request");
    legend(svg, top, [["none", "tall: reads its prompt · low: writes · line: waits · ×: preempted"]]);
    scene.requests.forEach((request, i) => {
      const middle = top + (i + 0.5) * rowHeight;
      label(group, LEFT - 5, middle + 3.5, request.id, {"text-anchor": "end"});
      for (const [kind, start, stop] of request.bars) {
        const waits = kind === "wait" || kind === "again", share = waits ? 0.1 : kind === "prefill" ? 0.86 : 0.5;
        make(group, "rect", {
          x: x(start), y: middle - share * rowHeight / 2, width: x(stop) - x(start), height: share * rowHeight,
          fill: waits ? grey : kind === "held" ? "white" : fill(i), stroke: kind === "held" ? request.color : "none",
          "data-owners": i,
        });
        if (kind === "again") label(group, x(start), middle + 4, "×", {"text-anchor": "middle", "font-size": 13, "font-weight": "bold"});
      }
    });
  }
  function drawBlocks(svg, top) {
    const group = panel(svg, top, blocks * blockHeight, "block");
    const kinds = scene.spans.map(span => span[3].length);
    legend(svg, top, [...(kinds.some(n => n > 1) ? [["black", "shared"]] : []), ...(kinds.includes(0) ? [[url("findable"), "free, still findable"]] : [])]);
    for (let block = 5; block <= blocks; block += blocks > 60 ? 20 : 5)
      label(group, LEFT - 5, top + (block - 0.5) * blockHeight + 3.5, block, {"text-anchor": "end"});
    for (const [block, start, stop, owners] of scene.spans) {
      make(group, "rect", {
        x: x(start), y: top + (block - 1) * blockHeight, width: x(stop) - x(start), height: blockHeight,
        fill: owners.length > 1 ? "black" : owners.length ? fill(owners[0][0]) : url("findable"),
        stroke: "white", "stroke-width": 0.5, "data-owners": owners.map(o => o[0]).join(" "),
        "data-hint": `Block ${block}, steps ${start} to ${stop - 1}: ${holders(owners)}.`,
      });
    }
  }
  const holders = owners => owners.length
    ? owners.map(([i, place]) => `block ${place + 1} of ${scene.requests[i].id}`).join(", ")
    : "free; what it holds can still be found";

  function area(group, top, height, low, high, color) {
    for (const u of scene.use)  // tokens grow within a stretch: a slope from its first step to its last
      make(group, "path", {fill: color, "shape-rendering": "crispEdges", d: [[u[0], high(u, 0)], [u[1], high(u, u[1] - u[0])], [u[1], low(u, u[1] - u[0])], [u[0], low(u, 0)]]
        .map(([step, share], k) => `${k ? "L" : "M"}${x(step)},${top + height * (1 - share)}`).join("")});
  }
  function drawCache(svg, top, height) {
    const group = panel(svg, top, height, "cache"), all = blocks * scene.size;
    const tokens = (u, k) => (u[6] + Math.min(k, u[1] - u[0] - 1) * u[5]) / all, held = u => u[7] / blocks;
    const scattered = scene.use.some(u => u[8]);
    area(group, top, height, () => 0, tokens, blue);
    area(group, top, height, tokens, held, orange);
    if (scattered) area(group, top, height, held, u => held(u) + u[8] / blocks, url("scattered"));
    legend(svg, top, [[blue, "tokens"], [orange, "held, empty"], ...(scattered ? [[url("scattered"), "free, scattered"]] : [])]);
    label(group, LEFT - 5, top + 8, "100%", {"text-anchor": "end"});
    label(group, LEFT - 5, top + height, "0", {"text-anchor": "end"});
  }
  function drawQueue(svg, top, height) {
    const group = panel(svg, top, height, "requests");
    const most = Math.max(1, ...scene.use.map(u => Math.max(u[2], u[3])));
    for (const [field, color, dashes] of [[2, blue, "none"], [3, vermillion, "4 3"]]) {
      const level = count => top + height * (1 - count / most);
      let path = "", last = null;
      for (const u of scene.use) {
        path += `${last === u[0] ? "L" : "M"}${x(u[0])},${level(u[field])}H${x(u[1])}`;
        last = u[1];
      }
      make(group, "path", {d: path, fill: "none", stroke: color, "stroke-width": 1.6, "stroke-dasharray": dashes});
    }
    legend(svg, top, [[blue, "running"], [vermillion, "waiting (dashed)"]]);
    label(group, LEFT - 5, top + 8, most, {"text-anchor": "end"});
    label(group, LEFT - 5, top + height, "0", {"text-anchor": "end"});
  }
  function drawSteps(svg, bottom) {
    const about = steps / 8, power = 10 ** Math.floor(Math.log10(Math.max(about, 1)));
    const every = [1, 2, 5, 10].map(n => n * power).find(n => n >= about) || 1;
    for (let step = Math.ceil(scene.first / every) * every; step <= scene.end; step += every)
      label(svg, x(step), bottom + 12, step, {"text-anchor": "middle"});
    label(svg, (LEFT + WIDTH - RIGHT) / 2, bottom + 25, "engine step", {"text-anchor": "middle"});
  }

  root.replaceChildren();
  root.style.cssText = `max-width:${WIDTH}px;background:white;color:#222;font:12px/1.4 sans-serif;padding:6px`;
  const tops = [18], heights = [rows * rowHeight, blocks * blockHeight, 60, 46];
  heights.slice(0, 3).forEach((height, k) => tops.push(tops[k] + height + LEGEND + 8));
  const bottom = tops[3] + heights[3];
  const svg = make(root, "svg", {viewBox: `0 0 ${WIDTH} ${bottom + 30}`, width: "100%", role: "img", "aria-label": scene.summary});
  svg.style.cssText = "display:block;touch-action:pan-y;cursor:crosshair";
  const defs = make(svg, "defs");
  scene.requests.forEach((request, i) => request.striped && pattern(defs, "request" + i, request.color, stripes("white")));
  pattern(defs, "findable", "#D9D9D9", tile => make(tile, "circle", {cx: 3, cy: 3, r: 1, fill: "white"}));
  pattern(defs, "scattered", "white", stripes("black"));
  drawRequests(svg, tops[0]);
  drawBlocks(svg, tops[1]);
  drawCache(svg, tops[2], heights[2]);
  drawQueue(svg, tops[3], heights[3]);
  drawSteps(svg, bottom);
  const cursor = make(svg, "rect", {y: tops[0], height: bottom - tops[0], width: Math.max(1.5, (x(scene.first + 1) - LEFT)), fill: "black", "fill-opacity": 0.18, stroke: "black", "stroke-width": 0.7, "pointer-events": "none"});

  // ---- what moves: the slider, the sentence, the block tables of this step
  const bar = make(root, "div");
  bar.style.cssText = `display:grid;grid-template-columns:${100 * LEFT / WIDTH}% 1fr ${100 * RIGHT / WIDTH}%;align-items:center;margin:2px 0`;
  make(bar, "label", {for: own + "-step"}, "step");
  const slider = make(bar, "input", {type: "range", id: own + "-step", min: scene.first, max: scene.end - 1, step: 1,
    "data-lm-suppress-shortcuts": "true"});  // or JupyterLab takes the arrow keys for its cells
  slider.value = scene.first;
  slider.style.cssText = "width:100%;margin:0";
  const sentence = make(root, "div", {"aria-live": "polite", "data-part": "sentence"});
  sentence.style.minHeight = "2.8em";
  const hint = make(root, "div", {"data-part": "hint"});
  hint.style.cssText = `min-height:1.4em;color:${grey}`;
  const tables = make(root, "div", {"data-part": "tables"});

  function tokensAt(request, step) {
    const bar = request.bars.find(b => b[1] <= step && step < b[2]);
    if (!bar || bar[0] === "wait" || bar[0] === "again") return 0;
    return bar[3] + (bar[0] === "held" ? 0 : step - bar[1]);
  }
  function say(step) {
    const u = uses(step), notes = scene.notes.filter(n => n[0] === step).map(n => n[1]);
    const state = u ? `Step ${step}: ${u[2]} running, ${u[3]} waiting; computing ${u[4]} prompt tokens and the next token of ${u[5]} answers; ${u[7]} of ${blocks} blocks in use.`
      : `Step ${step}: no requests.`;
    return state + (notes.length ? ` ${notes.join("; ")}.` : "");
  }
  function drawTables(step) {
    tables.replaceChildren();
    const held = scene.requests.map(() => []);
    for (const [block, start, stop, owners] of scene.spans)
      if (start <= step && step < stop) for (const [i, place] of owners) held[i][place] = [block, owners];
    const table = make(tables, "table", {"aria-label": `Block tables in step ${step}`});
    table.style.cssText = "border-collapse:separate;border-spacing:1px;margin:0;font-size:11px";
    scene.requests.forEach((request, i) => {
      if (!held[i].length) return;
      const row = make(table, "tr"), tokens = tokensAt(request, step);
      make(row, "th", {scope: "row"}, request.id).style.cssText = "text-align:right;padding:0 6px 0 0;background:white";
      const cells = make(row, "td"), line = make(cells, "div");
      cells.style.cssText = "padding:0;text-align:left;background:white";
      line.style.cssText = "display:flex;flex-wrap:wrap;gap:2px";
      held[i].forEach(([block, owners], place) => {
        const full = Math.max(0, Math.min(1, tokens / scene.size - place)), color = owners.length > 1 ? "#000000" : request.color;
        const stored = Math.round(full * scene.size), shared = owners.length > 1 ? `, shared by ${owners.length}` : "";
        const cell = make(line, "span", {"data-owners": owners.map(o => o[0]).join(" "), "data-hint": `Block ${block}: ${holders(owners)}; ${stored} of ${scene.size} tokens${shared}.`}, block);
        cell.style.cssText = `width:26px;text-align:center;border:1px solid ${color};border-bottom:4px solid ${color};position:relative;` +
          `background:linear-gradient(to right,${color}40 ${100 * full}%,white ${100 * full}%)`;
      });
      make(line, "span", {}, `${tokens} tokens`).style.cssText = `color:${grey};padding-left:4px`;
    });
  }
  function show(step) {
    now = Math.max(scene.first, Math.min(scene.end - 1, step));
    slider.value = now;
    const text = say(now);
    slider.setAttribute("aria-valuetext", text);
    sentence.textContent = text;
    cursor.setAttribute("x", x(now));
    drawTables(now);
  }
  function choose(owners) {  // the others fade
    if (owners === chosen) return;
    chosen = owners;
    const wanted = owners ? owners.split(" ") : [];
    svg.querySelectorAll("[data-owners]").forEach(node => {
      const mine = !owners || node.getAttribute("data-owners").split(" ").some(i => wanted.includes(i));
      node.setAttribute("opacity", mine ? 1 : 0.25);
    });
  }
  const stepAt = event => {
    const box = svg.getBoundingClientRect(), at = (event.clientX - box.left) / box.width * WIDTH;
    return scene.first + Math.floor((at - LEFT) / (WIDTH - LEFT - RIGHT) * steps);
  };
  slider.addEventListener("input", () => show(Number(slider.value)));
  svg.addEventListener("pointerdown", event => { show(stepAt(event)); slider.focus({preventScroll: true}); event.preventDefault(); });
  svg.addEventListener("pointermove", event => { if (event.buttons) show(stepAt(event)); });
  root.addEventListener("pointerover", event => {
    const node = event.target.closest("[data-owners]");
    hint.textContent = node ? node.getAttribute("data-hint") || "" : "";
    choose(node ? node.getAttribute("data-owners") : null);
  });
  root.addEventListener("pointerleave", () => { hint.textContent = ""; choose(null); });
  show(scene.first);
  root.setAttribute("data-drawn", "true");
}
