// The explorer: one model, page, head and token at a time; what the head looks at, and what every method keeps.
"use strict";

(() => {
  const source = document.getElementById("explorer-data");
  if (!source) return;
  const { models, colours } = JSON.parse(source.textContent);
  const shown = models.filter((model) => model.pages.length);
  const at = (name) => document.getElementById(`explorer-${name}`);
  const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;
  const state = { model: null, page: 0, layer: 0, head: 0, token: 0, choice: null, view: "page" };
  const unpacked = new Map(); // page -> promise of its arrays
  let drawing = 0;

  // ---- data

  async function bytes(text) {
    const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  function arrays(page) {
    if (!unpacked.has(page)) {
      const names = ["levels", "sums", "peak", "bits"];
      unpacked.set(page, Promise.all(names.map((name) => bytes(page[name]))).then(([levels, sums, peak, bits]) => (
        { levels, sums, peak: new Int16Array(peak.buffer), bits, index: new Map(page.heads.map((one, i) => [String(one), i])) }
      )));
    }
    return unpacked.get(page);
  }

  // Everything about the chosen head on the chosen page; null where the page does not hold this head.
  function looked(page, found) {
    const index = found.index.get(`${state.layer},${state.head}`);
    if (index === undefined) return null;
    const [tokens, cells] = [page.tokens.length, page.cells.length];
    const row = index * tokens + state.token;
    const levels = found.levels.subarray(row * cells, (row + 1) * cells);
    const peaks = found.peak.subarray(index * tokens, (index + 1) * tokens);
    return {
      attention: Array.from(levels, (level) => (level / 255) ** 2),
      sums: [found.sums[2 * row] / 255, found.sums[2 * row + 1] / 255],
      peak: peaks[state.token],
      hit: Array.from(peaks, (peak, token) => page.tokens[token].cells.includes(peak)),
      kept: page.kept.map((_, choice) => keeps(page, found, index, choice)),
    };
  }

  function keeps(page, found, index, choice) {
    const width = Math.ceil(page.prompt / 8);
    const start = (index * page.kept.length + choice) * width;
    return Array.from({ length: page.prompt }, (_, i) => (found.bits[start + (i >> 3)] >> (7 - (i & 7))) & 1);
  }

  function ranked(model) {
    if (!model.ranked) {
      const all = model.share.flatMap((row, layer) => row.map((share, head) => ({ layer, head, share })));
      model.ranked = all.sort((a, b) => b.share - a.share || a.layer - b.layer || a.head - b.head);
    }
    return model.ranked;
  }

  const rankOf = (model) => ranked(model).findIndex((one) => one.layer === state.layer && one.head === state.head);
  const kvHead = (model) => Math.floor(state.head / (model.share[0].length / model.kvHeads));

  // ---- words

  function facts(model, page, seen) {
    const share = model.share[state.layer][state.head];
    const count = model.share.length * model.share[0].length;
    const parts = [`Layer ${state.layer}, head ${state.head} (KV head ${kvHead(model)}): rank ${rankOf(model) + 1} of ` +
      `${count}, ${percent(share)} of the visual score.`];
    if (model.tokens) {
      parts.push(`On the calibration pages it looks at the right word for ` +
        `${percent(model.hits[state.layer][state.head] / model.tokens)} of ${model.tokens.toLocaleString("en")} tokens.`);
    }
    const token = page.tokens[state.token];
    if (!seen) {
      parts.push(`This page holds ${page.heads.length} heads, the best and a sample of the others; this one is not among them.`);
    } else if (token) {
      const words = page.tokens.filter((one) => one.cells.length).length;
      parts.push(`On this page, for ${seen.hit.filter(Boolean).length} of ${words}.`);
      const thumbnail = page.grid < page.cells.length ? ` and ${percent(seen.sums[1])} on its thumbnail` : "";
      const where = seen.peak < 0 ? "a position outside the page"
        : seen.hit[state.token] ? "the right word"
          : seen.peak >= page.grid ? "the thumbnail"
            : token.word === null ? "the page" : "another part of the page";
      parts.push(`About to say “${token.text}”${token.word === null ? "" : ` of “${token.word}”`}, it has ` +
        `${percent(seen.sums[0])} of its attention on the page${thumbnail}; it looks most at ${where}.`);
    }
    return parts.join(" ");
  }

  // The first token for which the chosen head looks at the right word, or else the first of any word.
  function firstToken(page, found) {
    const start = (found.index.get(`${state.layer},${state.head}`) ?? NaN) * page.tokens.length;
    const hit = page.tokens.findIndex((token, i) => token.cells.includes(found.peak[start + i]));
    return hit >= 0 ? hit : Math.max(page.tokens.findIndex((token) => token.cells.length), 0);
  }

  function visual(page, kept) {
    return page.positions.reduce((sum, position) => sum + kept[position], 0);
  }

  // ---- drawing

  function headsFigure(model) {
    const rank = model.share.map((row) => row.map(() => 0));
    ranked(model).forEach((one, i) => { rank[one.layer][one.head] = i + 1; });
    const [x, y] = [state.head, state.layer];
    const frame = { type: "rect", x0: x - 0.5, x1: x + 0.5, y0: y - 0.5, y1: y + 0.5, line: { color: "var(--focus)", width: 3 } };
    const layers = model.share.length;
    return {
      data: [{
        type: "heatmap", z: model.share.map((row) => row.map((share) => 100 * share)), customdata: rank, zmin: 0,
        colorscale: "Cividis", showscale: false, xgap: 1, ygap: 1,
        hovertemplate: "layer %{y}, head %{x}<br>%{z:.2f} % of the score, rank %{customdata}<extra></extra>",
      }],
      layout: {
        height: 340, shapes: [frame],
        xaxis: { title: { text: "query head" }, showgrid: false, dtick: Math.max(1, Math.ceil(model.share[0].length / 8)) },
        yaxis: { title: { text: "layer" }, showgrid: false, autorange: "reversed", dtick: Math.max(1, Math.ceil(layers / 8)) },
      },
    };
  }

  const edges = (cells, low, high) => [...new Set(cells.flatMap((cell) => [cell[low], cell[high]]))].sort((a, b) => a - b);

  // Cells of the page in full resolution or of its thumbnail, as rows of a heat map over the page's pixels.
  function cellMap(page, values) {
    const [first, last] = state.view === "page" ? [0, page.grid] : [page.grid, page.cells.length];
    const cells = page.cells.slice(first, last);
    const [x, y] = [edges(cells, 0, 2), edges(cells, 1, 3)];
    const columns = x.length - 1;
    const z = y.slice(1).map((_, row) => values.slice(first + row * columns, first + (row + 1) * columns));
    return { x, y, z, type: "heatmap" };
  }

  function pageFigure(page, seen) {
    const token = page.tokens[state.token];
    const data = [];
    const kept = seen && state.choice !== null ? seen.kept[state.choice] : null;
    if (seen) {
      const strongest = Math.max(1e-4, ...seen.attention);
      data.push({
        ...cellMap(page, seen.attention.map((share) => 100 * share)), zmin: 0, zmax: 100 * strongest,
        colorscale: [[0, "rgba(213,94,0,0)"], [1, "rgba(213,94,0,.85)"]],
        colorbar: { thickness: 10, outlinewidth: 0, title: { text: "attention, %", side: "right" } },
        hovertemplate: "%{z:.2f} % of the attention<extra></extra>",
      });
    }
    if (kept) {
      const gone = page.positions.map((position) => 1 - kept[position]);
      const veil = [[0, "rgba(255,255,255,0)"], [1, "rgba(255,255,255,.82)"]];
      data.push({ ...cellMap(page, gone), zmin: 0, zmax: 1, colorscale: veil, showscale: false, hoverinfo: "skip" });
      data.push(keptMarks(page, kept));
    }
    const shapes = [];
    if (token && token.box) {
      const [x0, y0, x1, y1] = token.box;
      shapes.push({ type: "rect", x0, y0, x1, y1, line: { color: "#0072b2", width: 2.5 } });
    }
    const image = { source: page.image, xref: "x", yref: "y", x: 0, y: 0, sizex: page.width, sizey: page.height,
      sizing: "stretch", layer: "below" };
    const bare = { visible: false };
    return {
      data,
      layout: {
        height: 340, images: [image], shapes, showlegend: false,
        xaxis: { ...bare, range: [0, page.width], constrain: "domain" },
        yaxis: { ...bare, range: [page.height, 0], scaleanchor: "x", constrain: "domain" },
      },
    };
  }

  function keptMarks(page, kept) {
    const [first, last] = state.view === "page" ? [0, page.grid] : [page.grid, page.cells.length];
    const cells = page.cells.slice(first, last).filter((_, i) => kept[page.positions[first + i]]);
    const { method } = page.kept[state.choice];
    return {
      type: "scatter", mode: "markers", hoverinfo: "skip",
      x: cells.map((cell) => (cell[0] + cell[2]) / 2), y: cells.map((cell) => (cell[1] + cell[3]) / 2),
      marker: { symbol: "square-open", size: 9, color: colours[method], line: { width: 2 } },
    };
  }

  // Every method at the chosen budget: one row each over the positions of the prompt.
  function keptFigure(page, seen) {
    const budget = Number(at("budget").value);
    const rows = page.kept.map((one, choice) => ({ ...one, choice })).filter((one) => one.budget === budget).reverse();
    const cells = new Set(page.positions);
    const label = (one) => {
      const kept = seen.kept[one.choice];
      return `${one.method}: ${kept.reduce((a, b) => a + b, 0)} (${visual(page, kept)})`;
    };
    const data = rows.map((one, i) => {
      const x = seen.kept[one.choice].flatMap((kept, position) => (kept ? [position] : []));
      return {
        type: "scatter", mode: "markers", x, y: x.map(() => i), name: one.method,
        marker: { symbol: "line-ns-open", size: 14, color: colours[one.method], line: { width: 2.5 } },
        text: x.map((position) => (cells.has(position) ? "visual token" : "text")),
        hovertemplate: `${one.method} keeps position %{x}, %{text}<extra></extra>`,
      };
    });
    const span = { type: "rect", xref: "x", yref: "paper", y0: 0, y1: 1, fillcolor: "var(--band)", line: { width: 0 }, layer: "below",
      x0: Math.min(...page.positions) - 0.5, x1: Math.max(...page.positions) + 0.5 };
    return {
      data,
      layout: {
        height: 110 + 30 * rows.length, shapes: [span], showlegend: false,
        xaxis: { title: { text: "position in the prompt (shaded: the image)" }, range: [-1, page.prompt], showgrid: false },
        yaxis: { tickvals: rows.map((_, i) => i), ticktext: rows.map(label), range: [-0.6, rows.length - 0.4], showgrid: false },
      },
    };
  }

  function tokens(page, seen) {
    const group = at("tokens");
    if (group.dataset.page !== page.id + state.model.key) {
      group.replaceChildren(...page.tokens.map((token, i) => {
        const button = document.createElement("button");
        button.type = "button";
        button.setAttribute("role", "radio");
        button.textContent = token.text.trim() || "␣";
        button.setAttribute("aria-label", token.word === null ? `token ${token.text}` : `token ${token.text} of ${token.word}`);
        button.addEventListener("click", () => choose({ token: i }));
        return button;
      }));
      group.dataset.page = page.id + state.model.key;
    }
    [...group.children].forEach((button, i) => {
      const chosen = i === state.token;
      button.setAttribute("aria-checked", String(chosen));
      button.title = seen && seen.hit[i] ? "this head looks at the right word" : "";
      button.tabIndex = chosen ? 0 : -1;
      button.className = seen && seen.hit[i] ? "hit" : page.tokens[i].cells.length ? "word" : "";
    });
  }

  async function redraw() {
    const turn = ++drawing;
    const { model } = state;
    const page = model.pages[state.page];
    const found = await arrays(page);
    if (turn !== drawing) return; // something else was chosen meanwhile
    state.token ??= firstToken(page, found);
    const seen = looked(page, found);
    at("facts").textContent = facts(model, page, seen);
    tokens(page, seen);
    const legend = [page.tokens[state.token]?.box ? "Blue: the word about to be said." : "This token belongs to no word of the page."];
    if (seen && state.choice !== null) {
      const { method, budget } = page.kept[state.choice];
      legend.push(`Squares: the ${visual(page, seen.kept[state.choice])} of ${page.positions.length} visual tokens that ${method} ` +
        `keeps in this KV head at B = ${budget}; what it forgets is faded.`);
    }
    at("legend").textContent = legend.join(" ");
    at("sight").setAttribute("aria-label", `The page with attention. ${at("facts").textContent} ${legend.join(" ")}`);
    const figures = [charts.draw(at("heads"), headsFigure(model)), charts.draw(at("sight"), pageFigure(page, seen))];
    at("kept").parentElement.hidden = !seen || !page.kept.length;
    if (seen && page.kept.length) {
      figures.push(charts.draw(at("kept"), keptFigure(page, seen)));
      at("budgets").textContent = `What every method keeps of the prompt in layer ${state.layer}, KV head ${kvHead(model)}, at ` +
        `B = ${at("budget").value}: slots in all, and in brackets those that hold visual tokens.`;
      at("kept").setAttribute("aria-label", `${at("budgets").textContent} ${keptWords(page, seen)}`);
    }
    await Promise.all(figures);
    if (turn === drawing) at("app").dataset.drawn = String(turn);
  }

  function keptWords(page, seen) {
    const budget = Number(at("budget").value);
    return page.kept.flatMap((one, i) => (one.budget !== budget ? [] :
      [`${one.method} ${seen.kept[i].reduce((a, b) => a + b, 0)} slots, ${visual(page, seen.kept[i])} visual.`])).join(" ");
  }

  // ---- choosing

  function options(name, values, chosen) {
    at(name).replaceChildren(...values.map(([value, text]) => new Option(text, value, false, String(value) === String(chosen))));
    at(name).disabled = values.length < 2;
  }

  const counted = (count) => Array.from({ length: count }, (_, i) => [i, i]);

  function controls() {
    const { model } = state;
    const page = model.pages[state.page];
    const [method, budget] = [at("method").value || "none", at("budget").value];
    const methods = [...new Set(page.kept.map((one) => one.method))];
    const budgets = [...new Set(page.kept.map((one) => one.budget))];
    options("model", shown.map((one, i) => [i, one.name]), shown.indexOf(model));
    options("page", model.pages.map((one, i) => [i, `${i + 1} (${one.width} × ${one.height})`]), state.page);
    options("layer", counted(model.share.length), state.layer);
    options("head", counted(model.share[0].length), state.head);
    options("method", [["none", "none: attention alone"], ...methods.map((one) => [one, one])], method);
    options("budget", budgets.map((one) => [one, `B = ${one}`]), budget || budgets[Math.floor(budgets.length / 2)]);
    const views = page.grid < page.cells.length ? [["page", "full resolution"], ["thumbnail", "thumbnail"]] : [["page", "full resolution"]];
    if (views.length === 1) state.view = "page";
    options("view", views, state.view);
    const index = page.kept.findIndex((one) => one.method === at("method").value && one.budget === Number(at("budget").value));
    state.choice = index < 0 ? null : index;
  }

  const within = (value, count) => Math.min(Math.max(value, 0), count - 1);

  // Change what is chosen; what does not fit the new model or page goes to the nearest that does.
  function choose(change) {
    Object.assign(state, change);
    const { model } = state;
    state.page = within(state.page, model.pages.length);
    state.layer = within(state.layer, model.share.length);
    state.head = within(state.head, model.share[0].length);
    const list = model.pages[state.page].tokens;
    state.token = "page" in change ? null : within(state.token, Math.max(list.length, 1));
    controls();
    return redraw();
  }

  function chooseModel(model) {
    const [best] = ranked(model);
    return choose({ model, page: 0, layer: best.layer, head: best.head });
  }

  function chooseRank(rank) {
    const list = ranked(state.model);
    const { layer, head } = list[within(rank, list.length)];
    return choose({ layer, head });
  }

  const HEAD_KEYS = {
    ArrowUp: () => choose({ layer: state.layer - 1 }),
    ArrowDown: () => choose({ layer: state.layer + 1 }),
    ArrowLeft: () => choose({ head: state.head - 1 }),
    ArrowRight: () => choose({ head: state.head + 1 }),
    PageUp: () => chooseRank(rankOf(state.model) - 1),
    PageDown: () => chooseRank(rankOf(state.model) + 1),
    Home: () => chooseRank(0),
  };
  const last = () => state.model.pages[state.page].tokens.length - 1;
  const TOKEN_KEYS = {
    ArrowLeft: () => choose({ token: state.token - 1 }),
    ArrowUp: () => choose({ token: state.token - 1 }),
    ArrowRight: () => choose({ token: state.token + 1 }),
    ArrowDown: () => choose({ token: state.token + 1 }),
    Home: () => choose({ token: 0 }),
    End: () => choose({ token: last() }),
  };

  function listen() {
    at("model").addEventListener("change", (event) => chooseModel(shown[event.target.value]));
    for (const name of ["page", "layer", "head"]) {
      at(name).addEventListener("change", (event) => choose({ [name]: Number(event.target.value) }));
    }
    at("view").addEventListener("change", (event) => choose({ view: event.target.value }));
    for (const name of ["method", "budget"]) at(name).addEventListener("change", () => choose({}));
    for (const [name, keys] of [["heads", HEAD_KEYS], ["tokens", TOKEN_KEYS]]) {
      at(name).addEventListener("keydown", (event) => {
        if (!keys[event.key] || event.altKey || event.ctrlKey || event.metaKey) return;
        event.preventDefault();
        keys[event.key]().then(() => name === "tokens" && at("tokens").children[state.token].focus());
      });
    }
    at("heads").on("plotly_click", (event) => choose({ layer: event.points[0].y, head: event.points[0].x }));
    document.addEventListener("head", (event) => {
      const { model: key, layer, head } = event.detail;
      const model = shown.find((one) => one.key === key);
      if (!model) return;
      choose(model === state.model ? { layer, head } : { model, page: 0, layer, head });
      document.getElementById("explorer").scrollIntoView();
    });
    document.addEventListener("scheme", redraw);
  }

  at("app").hidden = false;
  const first = shown.find((model) => model.name === model.key) || shown[0];
  chooseModel(first).then(listen);
})();
