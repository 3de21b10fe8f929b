// The explorer's figures and sentences: one head on one page.
"use strict";

const views = (() => {
  const { ranked, rankOf, kvHead, visual } = pages;
  const label = (method) => method.replace("+", " + ");
  const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;

  function facts(state, page, seen) {
    const { model } = state;
    const share = model.share[state.layer][state.head];
    const count = model.share.length * model.share[0].length;
    const parts = [`Layer ${state.layer}, head ${state.head} (KV head ${kvHead(state)}): rank ${rankOf(state) + 1} ` +
      `of ${count}, ${percent(share)} of the visual score.`];
    if (model.tokens) {
      const rate = percent(model.hits[state.layer][state.head] / model.tokens);
      const tokens = model.tokens.toLocaleString("en");
      parts.push(`On the calibration pages it looks at the right word for ${rate} of ${tokens} tokens.`);
    }
    const token = page.tokens[state.token];
    if (!seen) {
      parts.push(`This page holds ${page.heads.length} heads, the best and a sample of the others; this one is not ` +
        "among them.");
    } else if (token) {
      const words = page.tokens.filter((one) => one.cells.length).length;
      parts.push(`On this page, for ${seen.hit.filter(Boolean).length} of ${words}.`);
      const thumbnail = page.grid < page.cells.length ? ` and ${percent(seen.sums[1])} on its thumbnail` : "";
      parts.push(`About to say “${token.text}”${token.word === null ? "" : ` of “${token.word}”`}, it has ` +
        `${percent(seen.sums[0])} of its attention on the page${thumbnail}; ` +
        `it looks most at ${where(state, page, seen)}.`);
    }
    return parts.join(" ");
  }

  function where(state, page, seen) {
    if (seen.peak < 0) return "a position outside the page";
    if (seen.hit[state.token]) return "the right word";
    if (seen.peak >= page.grid) return "the thumbnail";
    return page.tokens[state.token].word === null ? "the page" : "another part of the page";
  }

  // What the colours and marks on the page mean.
  function legend(state, page, seen) {
    const known = page.tokens[state.token]?.box;
    const parts = [known ? "Blue: the word about to be said." : "This token belongs to no word of the page."];
    if (seen && state.choice !== null) {
      const { method, budget } = page.kept[state.choice];
      const count = visual(page, seen.kept[state.choice]);
      parts.push(`Squares: the ${count} of ${page.positions.length} visual tokens that ${label(method)} keeps in this KV ` +
        `head at B = ${budget}; what it evicts is faded.`);
    }
    return parts.join(" ");
  }

  // Every method at the chosen budget, with what it keeps in this head.
  function methods(state, page, seen) {
    const chosen = page.kept.map((one, i) => ({ ...one, kept: seen.kept[i] }));
    return chosen.filter((one) => one.budget === state.budget).map((one) => (
      { ...one, slots: one.kept.reduce((a, b) => a + b, 0), visual: visual(page, one.kept) }
    ));
  }

  function keptWords(state, page, seen) {
    const counts = methods(state, page, seen).map((one) => `${label(one.method)} ${one.slots} slots, ${one.visual} visual.`);
    return `What every method keeps of the prompt in layer ${state.layer}, KV head ${kvHead(state)}, at ` +
      `B = ${state.budget}. ${counts.join(" ")}`;
  }

  function headsFigure(state) {
    const { model } = state;
    const rank = model.share.map((row) => row.map(() => 0));
    ranked(model).forEach((one, i) => { rank[one.layer][one.head] = i + 1; });
    const [x, y] = [state.head, state.layer];
    const line = { color: "var(--focus)", width: 3 };
    const frame = { type: "rect", x0: x - 0.5, x1: x + 0.5, y0: y - 0.5, y1: y + 0.5, line };
    const axis = (text, count) => ({ title: { text }, showgrid: false, dtick: Math.max(1, Math.ceil(count / 8)) });
    return {
      data: [{
        type: "heatmap", z: model.share.map((row) => row.map((share) => 100 * share)), customdata: rank, zmin: 0,
        colorscale: "Cividis", showscale: false, xgap: 1, ygap: 1,
        hovertemplate: "layer %{y}, head %{x}<br>%{z:.2f} % of the score, rank %{customdata}<extra></extra>",
      }],
      layout: {
        height: 340, shapes: [frame],
        xaxis: axis("query head", model.share[0].length),
        yaxis: { ...axis("layer", model.share.length), autorange: "reversed" },
      },
    };
  }

  const edges = (cells, low, high) => (
    [...new Set(cells.flatMap((cell) => [cell[low], cell[high]]))].sort((a, b) => a - b)
  );
  const PARTS = { page: (page) => [0, page.grid], thumbnail: (page) => [page.grid, page.cells.length] };

  // Cells of the page in full resolution or of its thumbnail, as rows of a heat map over the page's pixels.
  function cellMap(state, page, values) {
    const [first, last] = PARTS[state.view](page);
    const cells = page.cells.slice(first, last);
    const [x, y] = [edges(cells, 0, 2), edges(cells, 1, 3)];
    const columns = x.length - 1;
    const z = y.slice(1).map((_, row) => values.slice(first + row * columns, first + (row + 1) * columns));
    return { x, y, z, type: "heatmap" };
  }

  function pageFigure(state, page, seen, width) {
    const token = page.tokens[state.token];
    const data = [];
    const kept = seen && state.choice !== null ? seen.kept[state.choice] : null;
    if (seen) {
      const strongest = Math.max(1e-4, ...seen.attention);
      const title = { text: "attention, %", side: "bottom" };
      data.push({
        ...cellMap(state, page, seen.attention.map((share) => 100 * share)), zmin: 0, zmax: 100 * strongest,
        colorscale: [[0, "rgba(213,94,0,0)"], [1, "rgba(213,94,0,.85)"]],
        colorbar: { orientation: "h", thickness: 8, outlinewidth: 0, y: 0, yanchor: "top", title },
        hovertemplate: "%{z:.2f} % of the attention<extra></extra>",
      });
    }
    if (kept) {
      const gone = page.positions.map((position) => 1 - kept[position]);
      const veil = [[0, "rgba(255,255,255,0)"], [1, "rgba(255,255,255,.82)"]];
      const still = { zmin: 0, zmax: 1, colorscale: veil, showscale: false, hoverinfo: "skip" };
      data.push({ ...cellMap(state, page, gone), ...still });
      data.push(keptMarks(state, page, kept));
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
        height: 80 + Math.min(Math.max((width * page.height) / page.width, 80), 420), // the colour bar below
        images: [image], shapes, showlegend: false,
        xaxis: { ...bare, range: [0, page.width], constrain: "domain" },
        yaxis: { ...bare, range: [page.height, 0], scaleanchor: "x", constrain: "domain" },
      },
    };
  }

  function keptMarks(state, page, kept) {
    const [first, last] = PARTS[state.view](page);
    const cells = page.cells.slice(first, last).filter((_, i) => kept[page.positions[first + i]]);
    const { method } = page.kept[state.choice];
    return {
      type: "scatter", mode: "markers", hoverinfo: "skip",
      x: cells.map((cell) => (cell[0] + cell[2]) / 2), y: cells.map((cell) => (cell[1] + cell[3]) / 2),
      marker: { symbol: "square-open", size: 9, color: state.colours[method], line: { width: 2 } },
    };
  }

  // Every method at the chosen budget: one row each over the positions of the prompt.
  function keptFigure(state, page, seen) {
    const rows = methods(state, page, seen).reverse(); // the first one on top
    const cells = new Set(page.positions);
    const data = rows.map((one, i) => {
      const x = one.kept.flatMap((kept, position) => (kept ? [position] : []));
      return {
        type: "scatter", mode: "markers", x, y: x.map(() => i), name: one.method,
        marker: { symbol: "line-ns-open", size: 14, color: state.colours[one.method], line: { width: 2.5 } },
        text: x.map((position) => (cells.has(position) ? "visual token" : "text")),
        hovertemplate: `${label(one.method)} keeps position %{x}, %{text}<extra></extra>`,
      };
    });
    const span = {
      type: "rect", xref: "x", yref: "paper", fillcolor: "var(--band)", line: { width: 0 }, layer: "below",
      y0: 0, y1: 1, x0: Math.min(...page.positions) - 0.5, x1: Math.max(...page.positions) + 0.5,
    };
    const labels = rows.map((one) => `${label(one.method)}: ${one.slots} (${one.visual})`);
    const title = { text: "position (shaded: the image)" };
    return {
      data,
      layout: {
        height: 110 + 30 * rows.length, shapes: [span], showlegend: false,
        xaxis: { title, range: [-1, page.prompt], showgrid: false },
        yaxis: { tickvals: rows.map((_, i) => i), ticktext: labels, range: [-0.6, rows.length - 0.4], showgrid: false },
      },
    };
  }

  return { label, facts, legend, keptWords, headsFigure, pageFigure, keptFigure };
})();
