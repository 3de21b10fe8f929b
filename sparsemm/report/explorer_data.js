// What the page holds of models and heads: unpacks it, and finds what belongs to one choice.
"use strict";

const pages = (() => {
  const unpacked = new Map(); // page -> promise of its arrays

  async function bytes(text) {
    const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  function arrays(page) {
    if (!unpacked.has(page)) {
      const names = ["levels", "sums", "peak", "bits"];
      const index = new Map(page.heads.map((one, i) => [String(one), i])); // "layer,head" -> its place in the arrays
      const all = Promise.all(names.map((name) => bytes(page[name])));
      unpacked.set(page, all.then(([levels, sums, peak, bits]) => (
        { levels, sums, peak: new Int16Array(peak.buffer), bits, index }
      )));
    }
    return unpacked.get(page);
  }

  // Everything about the chosen head on the chosen page; null where the page does not hold this head.
  function looked(state, page, found) {
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

  // 0 or 1 for every position of the prompt.
  function keeps(page, found, index, choice) {
    const width = Math.ceil(page.prompt / 8);
    const start = (index * page.kept.length + choice) * width;
    return Array.from({ length: page.prompt }, (_, i) => (found.bits[start + (i >> 3)] >> (7 - (i & 7))) & 1);
  }

  // All heads of a model, best score first.
  function ranked(model) {
    if (!model.ranked) {
      const all = model.share.flatMap((row, layer) => row.map((share, head) => ({ layer, head, share })));
      model.ranked = all.sort((a, b) => b.share - a.share || a.layer - b.layer || a.head - b.head);
    }
    return model.ranked;
  }

  const rankOf = ({ model, layer, head }) => ranked(model).findIndex((one) => one.layer === layer && one.head === head);
  const kvHead = ({ model, head }) => Math.floor(head / (model.share[0].length / model.kvHeads));

  // The first token for which the chosen head looks at the right word, or else the first of any word.
  function firstToken(state, page, found) {
    const start = (found.index.get(`${state.layer},${state.head}`) ?? NaN) * page.tokens.length;
    const hit = page.tokens.findIndex((token, i) => token.cells.includes(found.peak[start + i]));
    return hit >= 0 ? hit : Math.max(page.tokens.findIndex((token) => token.cells.length), 0);
  }

  // Visual tokens among what is kept.
  function visual(page, kept) {
    return page.positions.reduce((sum, position) => sum + kept[position], 0);
  }

  return { arrays, looked, ranked, rankOf, kvHead, firstToken, visual };
})();
