// Appended to the report by test_report.py; say() leaves findings for the test.
const q = (s) => document.querySelector(s), all = (s) => [...document.querySelectorAll(s)];
const set = (id, value, kind) => { q(id).value = value; q(id).dispatchEvent(new Event(kind, { bubbles: true })); };
say({ ready: document.documentElement.dataset.ready, hacked: window.hacked === undefined, failures: window.failures,
      panes: all(".pane").length, images: all("#list button").length, charts: all(".chart").length,
      foreign: all("#list img, #list b, table img").length });
const boxes = (s) => all(`.pane svg[data-run="1"] rect[data-query]`).map((r) => [r.dataset.query, r.getAttribute("x")]);
set("#threshold", 0, "input");
const last = boxes();
set("#stage", 1, "input");
const first = boxes();
say({ slider: JSON.stringify(last.sort()) !== JSON.stringify(first.sort()), caption: q(".pane figcaption").textContent });
const many = boxes().length;
set("#threshold", 0.5, "input");
say({ threshold: boxes().length < many, some: boxes().length > 0 });
set("#threshold", 0, "input");
const truths = all(".truth").length;
q("#truth").click();
say({ truths: truths > 0, hidden: all(".truth").length });
q("#truth").click();
q('.pane svg[data-run="0"] rect[data-query="0"]').dispatchEvent(new MouseEvent("click", { bubbles: true }));
say({ chosen: all(".box.chosen").length, points: all(".point").length, rows: all("#detail tr").length,
      heading: q("#detail h3").textContent });
const before = all(".point")[0].getAttribute("cx");
set("#stage", 3, "input");
say({ moved: all(".point")[0].getAttribute("cx") !== before });
q("#points").click();
say({ none: all(".point").length });
set("#filter", "fading", "change");
say({ fading: all("#list button").length, current: q('#list button[aria-current="true"]') !== null });
q('.kind[data-kind="fp"]').click(); q('.kind[data-kind="exacerbated"]').click(); q('.kind[data-kind="tp"]').click();
say({ kinds: [...new Set(all(".pane rect[data-kind]").map((r) => r.dataset.kind))].filter((k) => k !== "ignored") });
set("#filter", "worst", "change");
const worst = q("#place").textContent;
q("#after").click();
say({ step: q("#place").textContent !== worst, place: q("#place").textContent });
q("#theme").click();
const one = getComputedStyle(document.body).backgroundColor;
q("#theme").click();
say({ theme: one !== getComputedStyle(document.body).backgroundColor, failures: window.failures });
