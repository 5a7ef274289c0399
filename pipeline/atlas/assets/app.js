/* Addresses, keys, and what is drawn when. Addresses are permanent:
 *   #/                               the network
 *   #/neurons?q=...                  the table
 *   #/layer/NAME                     one layer
 *   #/neuron/LAYER/POOLING/NUMBER    one neuron                                             */
(function (atlas) {
  "use strict";

  const { h } = atlas;
  const FORMAT = 4; // of the shards; see pipeline/atlas/overview.py
  const main = document.getElementById("main");
  const scrolled = new Map(); // how far down each address was left
  let drawn = 0;
  let searching = false; // the search field was asked for from another page

  function parseAddress() {
    const [path, query = ""] = location.hash.replace(/^#/, "").split(/\?(.*)/s);
    const parts = path.split("/").slice(1).map((part) => {
      try { return decodeURIComponent(part); } catch { return part; }
    });
    return { kind: parts[0] || "", parts: parts.slice(1), parameters: new URLSearchParams(query) };
  }

  async function draw() {
    const mine = ++drawn;
    const live = () => mine === drawn;
    const address = location.hash;
    const { kind, parts, parameters } = parseAddress();
    atlas.hideTip();
    try {
      const overview = await atlas.load("overview");
      if (!live()) return;
      if (overview.format !== FORMAT) {
        throw new Error(`The data of this atlas have format ${overview.format}, its page reads ${FORMAT}. Build the atlas again.`);
      }
      let title = "";
      if (kind === "") {
        atlas.overviewPage(overview, main);
      } else if (kind === "neurons") {
        title = "Neurons";
        await atlas.tablePage(overview, main, {}, parameters, live);
      } else if (kind === "layer" && overview.groups.some((group) => group.layer === parts[0])) {
        title = parts[0];
        await atlas.tablePage(overview, main, { layer: parts[0] }, parameters, live);
      } else if (kind === "neuron" && parts.length === 3) {
        title = `${parts[0]}:${parts[2]}`;
        await atlas.neuronPage(overview, main, parts[0], parts[1], Number(parts[2]), live);
      } else {
        main.replaceChildren(h("h1", {}, "Nothing here"), h("p", { class: "notice" },
          "This address names no layer or neuron of this run. ", h("a", { href: "#/" }, "Back to the overview.")));
      }
      if (!live()) return;
      document.title = title ? `${title} \u2013 ${overview.title}` : overview.title;
    } catch (error) {
      if (!live()) return;
      main.replaceChildren(h("h1", {}, "This page cannot be drawn"), h("p", { class: "notice" }, error.message));
      console.error(error);
    }
    const first = !main.dataset.drawn;
    document.querySelectorAll("[data-nav]").forEach((link) => {
      const own = link.dataset.nav === (kind === "" ? "overview" : "neurons");
      if (own) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    });
    main.dataset.drawn = kind || "overview";
    window.scrollTo(0, kind === "neuron" ? 0 : scrolled.get(address) || 0);
    const field = document.getElementById("query");
    if (searching && field) field.focus();
    else if (!first) main.focus({ preventScroll: true });
    searching = false;
  }

  window.addEventListener("hashchange", draw);
  window.addEventListener("scroll", () => {
    if (main.dataset.drawn) scrolled.set(location.hash, window.scrollY);
    atlas.hideTip();
  }, { passive: true });

  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault(); // its address would be taken for a page of the atlas
    main.focus();
  });

  const help = document.getElementById("help");
  document.getElementById("help-button").addEventListener("click", () => help.showModal());

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
    const typing = event.target.closest("input, select, textarea");
    if (event.key === "Escape") {
      atlas.hideTip();
      if (typing) typing.blur();
      return;
    }
    const sliding = typing && typing.type === "range";
    if (typing && !(sliding && event.key.length === 1)) return;
    const { kind, parts } = parseAddress();
    const press = (selector) => {
      const link = document.querySelector(selector);
      if (link) link.click();
    };
    if (event.key === "/") {
      event.preventDefault();
      const field = document.getElementById("query");
      if (field) field.focus();
      else {
        location.hash = atlas.link.neurons();
        searching = true;
      }
    } else if (event.key === "ArrowLeft") press('.steps [rel="prev"]');
    else if (event.key === "ArrowRight") press('.steps [rel="next"]');
    else if (event.key === "u") location.hash = kind === "neuron" ? atlas.link.layer(parts[0]) : "#/";
    else if (event.key === "h") press("button.places");
    else if (event.key === "?") help.showModal();
  });

  draw();
})(window.atlas);
