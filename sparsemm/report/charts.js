// Draws every chart of the page when it comes near the screen, in the colours of the page's scheme.
"use strict";

const charts = (() => {
  const FONT = "system-ui, sans-serif";
  const CONFIG = { displayModeBar: false, responsive: true, doubleClick: false };

  // "var(--ink)" anywhere in a figure becomes the colour that the style sheet gives it now.
  function coloured(value, styles = getComputedStyle(document.documentElement)) {
    if (typeof value === "string") {
      const found = /^var\((--[a-z-]+)\)$/.exec(value);
      return found ? styles.getPropertyValue(found[1]).trim() : value;
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
      title: { standoff: 8, ...given.title, font: { size: narrow ? 11 : 13 } },
    };
  }

  // A figure as plotly takes it: the page's look around the figure's own layout.
  function draw(element, figure) {
    const narrow = element.clientWidth < 480;
    const layout = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", dragmode: false, hovermode: "closest",
      font: { family: FONT, size: narrow ? 11 : 13, color: "var(--ink)" },
      margin: { l: 8, r: 8, t: 12, b: 8 },
      hoverlabel: { bgcolor: "var(--panel)", bordercolor: "var(--faint)", font: { color: "var(--ink)", family: FONT } },
      ...figure.layout,
    };
    for (const name of Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key))) {
      layout[name] = axis(layout[name], narrow);
    }
    return Plotly.react(element, coloured(figure.data), coloured(layout), CONFIG);
  }

  function show(figure) {
    const plot = figure.querySelector(".plot");
    return draw(plot, JSON.parse(figure.querySelector("script").textContent)).then(() => {
      if (!figure.dataset.model || figure.dataset.drawn) return;
      figure.dataset.drawn = "yes";
      plot.on("plotly_click", (event) => {
        const [x, y] = [event.points[0].x, event.points[0].y];
        const detail = { model: figure.dataset.model, layer: y, head: x };
        document.dispatchEvent(new CustomEvent("head", { detail }));
      });
    });
  }

  const figures = [...document.querySelectorAll("figure.chart")];
  const shown = new Set();
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries.filter((one) => one.isIntersecting)) {
      watcher.unobserve(entry.target);
      shown.add(entry.target);
      show(entry.target);
    }
  }, { rootMargin: "600px" });
  figures.forEach((figure) => watcher.observe(figure));
  window.addEventListener("beforeprint", () => figures.forEach(show));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    shown.forEach(show);
    document.dispatchEvent(new CustomEvent("scheme"));
  });
  return { draw };
})();
