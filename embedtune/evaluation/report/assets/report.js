"use strict";
// The miss browser. The hash of the URL (#filter=broken&k=3&search=pump) is its state, so that views can be linked to.
// Texts are only inserted through textContent, so that markup in a chunk is shown and never run.
(() => {
  const material = JSON.parse(document.getElementById("material").textContent);
  const { runs, ks, chunks, questions, depth } = material;
  const PAGE_SIZE = 20;
  const FILTERS = {
    all: ["all", "Every question."],
    fixed: ["fixed", "A relevant chunk was not among the first k before, and is now."],
    broken: ["broken", "A relevant chunk was among the first k before, and no longer is."],
    missed: ["still missed", "No relevant chunk is among the first k, before or after."],
    suspicious: ["suspicious label", "Every retriever ranks the same other chunk first, and it shares as many words with the question as the relevant one. It may be relevant too: read both."],
  };
  const $ = (id) => document.getElementById(id);
  const defaults = { filter: "all", k: String(material.k), from: "0", to: "1", sort: "change", search: "", page: "1" };

  function element(tag, className, text) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  }

  function readState() {
    const state = { ...defaults };
    for (const [name, value] of new URLSearchParams(location.hash.slice(1))) if (Object.hasOwn(state, name)) state[name] = value;
    const allowed = { filter: Object.keys(FILTERS), k: ks.map(String), from: Object.keys(runs), to: Object.keys(runs),
                      sort: ["change", "shared", "id"] };
    for (const [name, values] of Object.entries(allowed)) if (!values.includes(state[name])) state[name] = defaults[name];
    return state;
  }

  function go(changes) {
    const state = { ...readState(), page: "1", ...changes };
    const differing = Object.entries(state).filter(([name, value]) => value !== defaults[name]);
    history.replaceState(null, "", "#" + new URLSearchParams(differing.length ? differing : [["filter", "all"]]));
    show();
  }

  const rank = (question, run) => question.ranks[run] ?? Infinity;

  function isIn(filter, question, state) {
    const before = rank(question, state.from) <= state.k, after = rank(question, state.to) <= state.k;
    return { all: true, fixed: !before && after, broken: before && !after, missed: !before && !after,
             suspicious: question.suspect !== null }[filter];
  }

  const shown = (question) => [...new Set([...question.relevant, ...question.above.flat()])].map((i) => chunks[i]);

  function matches(question, search) {
    const has = (text) => text !== undefined && text.toLowerCase().includes(search);
    return !search || has(question.text) || has(question.id) || shown(question).some((c) => has(c.id) || has(c.text));
  }

  const byId = (a, b) => (a.id < b.id ? -1 : a.id > b.id ? 1 : 0);
  const discount = (r) => 1 / Math.log2(1 + r); // as in nDCG: changes at the top count more; 0 if not found

  function sorted(list, state) {
    const change = (q) => Math.abs(discount(rank(q, state.to)) - discount(rank(q, state.from)));
    const orders = { id: byId, shared: (a, b) => (a.shared ?? 0) - (b.shared ?? 0) || byId(a, b),
                     change: (a, b) => change(b) - change(a) || byId(a, b) };
    return list.sort(orders[state.sort]);
  }

  const UNSPACED = "\\u0e00-\\u0eff\\u3040-\\u30ff\\u3400-\\u4dbf\\u4e00-\\u9fff\\uf900-\\ufaff";
  const WORD = new RegExp(`[${UNSPACED}]|(?:(?![${UNSPACED}])[\\p{L}\\p{N}\\p{M}_])+`, "gu");
  const plain = (word) => word.normalize("NFKC").toLowerCase();

  // Append a text with the words of the question marked.
  function appendMarked(node, text, wanted) {
    let end = 0;
    for (const match of text.matchAll(WORD)) {
      if (!wanted.has(plain(match[0]))) continue;
      node.append(text.slice(end, match.index), element("mark", "", match[0]));
      end = match.index + match[0].length;
    }
    node.append(text.slice(end));
  }

  const hasParts = (scored) => scored !== null && scored[1] !== null;

  // What vectors and words contribute to a score, as two bars on the scale of the question's largest score.
  function partsNode([score, words], largest) {
    const node = element("span", "parts"), vectors = score - words;
    for (const [name, value] of [["vectors", vectors], ["words", words]]) {
      const bar = element("span", `part ${name}`);
      bar.style.width = `${Math.max(0, Math.min(1, value / largest)) * 6}em`;
      node.append(element("span", "", `${name} ${value.toFixed(3)}`), bar);
    }
    return node;
  }

  function chunkNode(index, wanted, { className = "", label = "", scored = null, largest = 1, short = false } = {}) {
    const chunk = chunks[index], node = element("div", `chunk ${className}`);
    const id = element("div", "id", label);
    id.append(element("bdi", "", chunk.id));
    if (hasParts(scored)) id.append(partsNode(scored, largest));
    node.append(id);
    if (chunk.text === undefined) return node;
    const text = element("p", short ? "text short" : "text");
    text.dir = "auto";
    appendMarked(text, chunk.text, wanted);
    if (chunk.cut) text.append(` … (cut after ${material.maxCharacters} characters)`);
    if (short) {
      text.tabIndex = 0;
      for (const event of ["click", "focus"]) text.addEventListener(event, () => text.classList.remove("short"));
    }
    node.append(text);
    return node;
  }

  function bodyOf(question) {
    const body = element("div", "body"), wanted = new Set([...question.text.matchAll(WORD)].map((m) => plain(m[0])));
    body.append(element("h4", "", question.relevant.length > 1 ? "Relevant chunks" : "Relevant chunk"));
    for (const i of question.relevant) body.append(chunkNode(i, wanted, { className: "relevant" }));
    runs.forEach((name, run) => {
      const found = question.ranks[run], above = question.above[run];
      const heading = element("h4");
      heading.append(element("bdi", "", name), found === 1 ? ": relevant chunk first" :
        `: relevant chunk ${found === null ? `not among the first ${depth}` : `at rank ${found}`}, and above it`);
      body.append(heading);
      const scores = question.scores[run], own = question.found[run];
      const largest = Math.max(...[...scores, own].filter(hasParts).flatMap(([score, words]) => [score - words, words]), 1e-9);
      if (own) {
        const line = element("p", "small", `relevant chunk: score ${own[0]} `);
        if (hasParts(own)) line.append(partsNode(own, largest));
        body.append(line);
      }
      above.forEach((i, position) => body.append(chunkNode(i, wanted, {
        className: i === question.suspect ? "suspect" : "", short: true, scored: scores[position], largest,
        label: `${position + 1}. score ${scores[position][0]} · ` })));
      if (found === null || found - 1 > above.length) body.append(element("p", "small", "… and others"));
    });
    return body;
  }

  function statusOf(question, state) {
    const status = ["fixed", "broken", "missed"].find((filter) => isIn(filter, question, state));
    const nodes = status ? [element("span", `status-${status}`, FILTERS[status][0])] : [];
    if (question.suspect !== null) nodes.push(element("span", "status-suspicious", "suspicious label"));
    return nodes;
  }

  function caseNode(question, state, open) {
    const item = element("li"), details = element("details", "case"), summary = element("summary");
    details.dataset.id = question.id;
    const text = element("span", "question", question.text);
    text.dir = "auto";
    const badges = element("span", "badges");
    badges.append(...statusOf(question, state));
    runs.forEach((name, run) => {
      const badge = element("span");
      badge.append(element("bdi", "", name), ` ${question.ranks[run] ?? "–"}`);
      badges.append(badge);
    });
    if (question.shared !== null) badges.append(element("span", "", `${Math.round(100 * question.shared)}% of its words shared`));
    summary.append(text, badges);
    details.append(summary);
    const fill = () => { if (details.open && details.children.length === 1) details.append(bodyOf(question)); };
    details.addEventListener("toggle", fill);
    details.open = open;
    fill();
    item.append(details);
    return item;
  }

  function show() {
    const state = readState(), search = state.search.trim().toLowerCase();
    const found = questions.filter((question) => matches(question, search));
    for (const button of $("filters").children) {
      const name = button.dataset.filter;
      button.textContent = `${FILTERS[name][0]} ${found.filter((q) => isIn(name, q, state)).length}`;
      button.setAttribute("aria-pressed", String(name === state.filter));
    }
    for (const name of ["k", "from", "to", "sort"]) $(name).value = state[name];
    if ($("search").value.trim().toLowerCase() !== search) $("search").value = state.search;
    const list = sorted(found.filter((question) => isIn(state.filter, question, state)), state);
    const numPages = Math.max(1, Math.ceil(list.length / PAGE_SIZE));
    const page = Math.min(Math.max(1, Math.trunc(Number(state.page)) || 1), numPages);
    $("explanation").textContent = FILTERS[state.filter][1].replace(/first k/g, `first ${state.k}`);
    $("count").textContent = `${list.length} of ${questions.length} questions`;
    const items = list.slice((page - 1) * PAGE_SIZE, page * PAGE_SIZE);
    $("list").replaceChildren(...items.map((question) => caseNode(question, state, items.length === 1)));
    $("page").textContent = `page ${page} of ${numPages}`;
    for (const [id, to] of [["previous", page - 1], ["next", page + 1]]) {
      $(id).disabled = to < 1 || to > numPages;
      $(id).onclick = () => { go({ page: String(to) }); $("questions").scrollIntoView(); };
    }
  }

  function fillSelect(id, options) {
    for (const [value, label] of options) {
      const option = element("option", "", label);
      option.value = value;
      $(id).append(option);
    }
  }

  for (const name of Object.keys(FILTERS)) {
    const button = element("button");
    button.type = "button";
    button.dataset.filter = name;
    button.addEventListener("click", () => go({ filter: name }));
    $("filters").append(button);
  }
  fillSelect("k", ks.map((k) => [k, k]));
  for (const id of ["from", "to"]) fillSelect(id, runs.map((name, i) => [i, name]));
  for (const id of ["k", "from", "to", "sort"]) $(id).addEventListener("change", () => go({ [id]: $(id).value }));
  $("search").addEventListener("input", () => go({ search: $("search").value }));
  addEventListener("hashchange", () => {
    if (!location.hash.includes("=")) return;
    show();
    $("questions").scrollIntoView();
  });
  $("browser").hidden = false;
  show();
  if (location.hash.includes("=")) $("questions").scrollIntoView();
})();
