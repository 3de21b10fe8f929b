// The explorer: one model, page, head and token at a time; chosen by mouse, keyboard or a click on a heat map.
"use strict";

(() => {
  const source = document.getElementById("explorer-data");
  if (!source) return;
  const { models, colours } = JSON.parse(source.textContent);
  const shown = models.filter((model) => model.pages.length);
  const at = (name) => document.getElementById(`explorer-${name}`);
  // choice: index into the page's kept, or null; token: null until the page is unpacked
  const state = { model: null, page: 0, layer: 0, head: 0, token: null, choice: null, budget: 0, view: "page" };
  state.colours = colours;
  let drawing = 0;

  function tokens(page, seen) {
    const group = at("tokens");
    if (group.dataset.page !== page.id + state.model.key) {
      group.replaceChildren(...page.tokens.map((token, i) => {
        const button = document.createElement("button");
        button.type = "button";
        button.setAttribute("role", "radio");
        button.textContent = token.text.trim() || "␣";
        const word = token.word === null ? "" : ` of ${token.word}`;
        button.setAttribute("aria-label", `token ${token.text}${word}`);
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
    const page = state.model.pages[state.page];
    const found = await pages.arrays(page);
    if (turn !== drawing) return; // something else was chosen meanwhile
    state.token ??= pages.firstToken(state, page, found);
    const seen = pages.looked(state, page, found);
    tokens(page, seen);
    at("facts").textContent = views.facts(state, page, seen);
    at("legend").textContent = views.legend(state, page, seen);
    at("sight").setAttribute("aria-label", `The page. ${at("facts").textContent} ${at("legend").textContent}`);
    const more = `${page.leftOut} more tokens are not shown. The whole answer: ${page.answer}`;
    at("rest").textContent = page.leftOut ? more : "";
    const sight = views.pageFigure(state, page, seen, at("sight").clientWidth);
    const figures = [["heads", views.headsFigure(state)], ["sight", sight]];
    at("kept").parentElement.hidden = !seen || !page.kept.length;
    if (seen && page.kept.length) {
      figures.push(["kept", views.keptFigure(state, page, seen)]);
      at("kept").setAttribute("aria-label", views.keptWords(state, page, seen));
      at("where").textContent = `layer ${state.layer}, KV head ${pages.kvHead(state)}, at B = ${state.budget}`;
    }
    await Promise.all(figures.map(([name, figure]) => charts.draw(at(name), figure)));
    if (turn === drawing) at("app").dataset.drawn = String(turn);
  }

  function options(name, values, chosen) {
    const made = values.map(([value, text]) => new Option(text, value, false, String(value) === String(chosen)));
    at(name).replaceChildren(...made);
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
    options("method", [["none", "none: attention alone"], ...methods.map((one) => [one, views.label(one)])], method);
    options("budget", budgets.map((one) => [one, `B = ${one}`]), budget || budgets[Math.floor(budgets.length / 2)]);
    const sights = [["page", "full resolution"]];
    if (page.grid < page.cells.length) sights.push(["thumbnail", "thumbnail"]);
    else state.view = "page";
    options("view", sights, state.view);
    state.budget = Number(at("budget").value);
    const index = page.kept.findIndex((one) => one.method === at("method").value && one.budget === state.budget);
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
    if ("page" in change) state.token = null;
    if (state.token !== null) state.token = within(state.token, Math.max(list.length, 1));
    controls();
    return redraw();
  }

  function chooseModel(model) {
    const [best] = pages.ranked(model);
    return choose({ model, page: 0, layer: best.layer, head: best.head });
  }

  function chooseRank(rank) {
    const list = pages.ranked(state.model);
    const { layer, head } = list[within(rank, list.length)];
    return choose({ layer, head });
  }

  const HEAD_KEYS = {
    ArrowUp: () => choose({ layer: state.layer - 1 }),
    ArrowDown: () => choose({ layer: state.layer + 1 }),
    ArrowLeft: () => choose({ head: state.head - 1 }),
    ArrowRight: () => choose({ head: state.head + 1 }),
    PageUp: () => chooseRank(pages.rankOf(state) - 1),
    PageDown: () => chooseRank(pages.rankOf(state) + 1),
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
