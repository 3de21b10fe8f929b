// Draws every chart of the page when it comes near the screen, in the colours of the page's scheme.
"use strict";

const charts = (() => {
  const FONT = "system-ui, sans-serif";
  const CONFIG = { displayModeBar: false, responsive: false, doubleClick: false };
  const NARROW = 640; // pixels: below this width panels stand in one column
  const BELOW = 64, BESIDE = 58; // pixels around a panel for the labels of its axes
  const DIMMEST = 125; // luminance, of 255, that a colour has at least on a dark page
  const LETTER = 7.5, LINE = 16; // pixels of a letter and of a line of text, at most

  const isDark = () => matchMedia("(prefers-color-scheme: dark)").matches;

  // "#1d3557" on a dark page becomes light enough to be seen: it is mixed with white until it is.
  function readable(colour) {
    if (!isDark() || !/^#[0-9a-f]{6}$/i.test(colour)) return colour;
    let parts = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
    const light = () => 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
    while (light() < DIMMEST) parts = parts.map((part) => part + 0.1 * (255 - part));
    return `rgb(${parts.map(Math.round).join(", ")})`;
  }

  function colourLegends() {
    for (const glyph of document.querySelectorAll(".legend span")) {
      glyph.dataset.colour ??= glyph.style.color;
      const hex = glyph.dataset.colour.replace(/^rgb\((\d+), (\d+), (\d+)\)$/, (_, ...rgb) => (
        "#" + rgb.slice(0, 3).map((part) => Number(part).toString(16).padStart(2, "0")).join("")));
      glyph.style.color = readable(hex);
    }
  }

  // "var(--ink)" anywhere in a figure becomes the colour that the style sheet gives it now.
  function coloured(value, styles = getComputedStyle(document.documentElement)) {
    if (typeof value === "string") {
      const name = /^var\((--[a-z0-9-]+)\)$/.exec(value);
      return name ? styles.getPropertyValue(name[1]).trim() : readable(value);
    }
    if (Array.isArray(value)) return value.map((one) => coloured(one, styles));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, coloured(one, styles)]));
    }
    return value;
  }

  function axis(given, narrow) {
    return {
      fixedrange: true, gridcolor: "var(--line)", zeroline: false, linecolor: "var(--faint)", automargin: true,
      ...given,
      title: { standoff: 6, ...given.title, font: { size: narrow ? 11 : 12 } },
    };
  }

  // A figure as plotly takes it: the page's look around the figure's own layout.
  function draw(element, figure) {
    const narrow = element.clientWidth < 480;
    const layout = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", dragmode: false, hovermode: "closest",
      font: { family: FONT, size: narrow ? 11 : 12, color: "var(--ink)" },
      margin: { l: 8, r: 8, t: 12, b: 8 }, width: element.clientWidth,
      hoverlabel: { bgcolor: "var(--panel)", bordercolor: "var(--faint)", font: { color: "var(--ink)", family: FONT } },
      ...figure.layout,
    };
    for (const name of Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key))) {
      layout[name] = axis(layout[name], narrow);
    }
    return Plotly.react(element, coloured(figure.data), coloured(layout), CONFIG);
  }

  const columnsOf = (spec, width) => (width < NARROW ? 1 : spec.columns);
  const rowOf = (spec, width) => spec.row + LINE * (titleLines(spec, width) - 1);
  const heightOf = (spec, width) => rowOf(spec, width) * Math.ceil(spec.panels.length / columnsOf(spec, width));

  function wrapped(title, width) {
    const lines = [""];
    for (const word of title.split(" ")) {
      const longer = `${lines.at(-1)} ${word}`.trim();
      if (longer.length * LETTER <= width || !lines.at(-1)) lines[lines.length - 1] = longer;
      else lines.push(word);
    }
    return lines;
  }

  const titleWidth = (panel, cell) => cell - beside(panel, cell) - 14;

  function titleLines(spec, width) {
    const cell = width / columnsOf(spec, width);
    return Math.max(...spec.panels.map((panel) => wrapped(panel.title, titleWidth(panel, cell)).length));
  }

  // Pixels that the labels left of a panel need.
  function beside(panel, width) {
    const labels = (panel.y.ticktext || []).flatMap((label) => label.split("<br>"));
    const longest = Math.max(0, ...labels.map((label) => label.length));
    return Math.min(Math.max(BESIDE, LETTER * longest + 14), 0.45 * width);
  }

  // Panels of a chart as one figure: domains in shares of the whole, from widths and heights in pixels.
  function grid(spec, width) {
    const columns = columnsOf(spec, width);
    const height = heightOf(spec, width);
    const rowHeight = rowOf(spec, width);
    const above = 10 + LINE * titleLines(spec, width);
    const layout = { height, showlegend: false, annotations: [], shapes: [], margin: { l: 0, r: 0, t: 0, b: 0 } };
    const data = [];
    spec.panels.forEach((panel, i) => {
      const name = i ? String(i + 1) : "";
      const [column, row] = [i % columns, Math.floor(i / columns)];
      const cell = width / columns;
      const [left, right] = [(column * cell + beside(panel, cell)) / width, ((column + 1) * cell - 14) / width];
      const top = 1 - (row * rowHeight + above) / height;
      const bottom = 1 - ((row + 1) * rowHeight - BELOW) / height;
      const plain = { automargin: false };
      layout[`xaxis${name}`] = { ...plain, ...panel.x, domain: [left, right], anchor: `y${name}` };
      layout[`yaxis${name}`] = { ...plain, ...panel.y, domain: [bottom, top], anchor: `x${name}` };
      if (panel.title) {
        layout.annotations.push({
          text: wrapped(panel.title, titleWidth(panel, cell)).map((line) => `<b>${line}</b>`).join("<br>"), xref: "paper", yref: "paper", x: left, y: top, xanchor: "left",
          yanchor: "bottom", align: "left", showarrow: false, font: { size: 12 },
        });
      }
      if (panel.zero) {
        const line = { type: "line", line: { color: "var(--ink)", width: 1 } };
        const across = panel.zero === "y";
        layout.shapes.push(across
          ? { ...line, xref: `x${name} domain`, yref: `y${name}`, x0: 0, x1: 1, y0: 0, y1: 0 }
          : { ...line, xref: `x${name}`, yref: `y${name} domain`, x0: 0, x1: 0, y0: 0, y1: 1 });
      }
      data.push(...panel.traces.map((trace) => ({ ...trace, xaxis: `x${name}`, yaxis: `y${name}` })));
    });
    return { data, layout };
  }

  const specs = new Map(); // figure -> its chart
  function specOf(figure) {
    if (!specs.has(figure)) specs.set(figure, JSON.parse(figure.querySelector("script").textContent));
    return specs.get(figure);
  }

  function show(figure) {
    const plot = figure.querySelector(".plot");
    if (!plot.clientWidth) return Promise.resolve(); // in a tab or a fold that is closed
    return draw(plot, grid(specOf(figure), plot.clientWidth)).then(() => {
      if (!figure.dataset.model || figure.dataset.drawn) return;
      plot.on("plotly_click", (event) => {
        const [x, y] = [event.points[0].x, event.points[0].y];
        const detail = { model: figure.dataset.model, layer: y, head: x };
        document.dispatchEvent(new CustomEvent("head", { detail }));
      });
    }).then(() => { figure.dataset.drawn = "yes"; });
  }

  const figures = [...document.querySelectorAll("figure.chart")];
  const shown = new Set();

  // Room for every chart before it is drawn, so that nothing moves under the reader.
  function reserve() {
    const width = document.querySelector("main").clientWidth;
    for (const figure of figures) {
      const plot = figure.querySelector(".plot");
      plot.style.height = `${heightOf(specOf(figure), plot.clientWidth || width)}px`;
    }
  }

  const watcher = new IntersectionObserver((entries) => {
    const near = (one) => one.isIntersecting && one.target.querySelector(".plot").clientWidth;
    for (const entry of entries.filter(near)) {
      watcher.unobserve(entry.target);
      shown.add(entry.target);
      reserve();
      show(entry.target);
    }
  }, { rootMargin: "600px" });
  reserve();
  colourLegends();
  figures.forEach((figure) => watcher.observe(figure));
  let known = innerWidth;
  window.addEventListener("resize", () => {
    if (innerWidth === known) return;
    known = innerWidth;
    reserve();
    shown.forEach(show);
  });
  window.addEventListener("beforeprint", () => figures.forEach(show));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    colourLegends();
    shown.forEach(show);
    document.dispatchEvent(new CustomEvent("scheme"));
  });

  // Charts that were drawn while their tab was away know the colours and the width of then.
  function refresh(element) {
    element.querySelectorAll("figure.chart").forEach((figure) => shown.has(figure) && show(figure));
  }
  return { draw, refresh };
})();
