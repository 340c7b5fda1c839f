// Contrast of text against its ground, by WCAG's formula.
const lum = (c) => { const [r, g, b] = c.match(/[\d.]+/g).map(Number).map((v) => { v /= 255;
  return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const ground = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
  if (c !== "rgba(0, 0, 0, 0)" && c !== "transparent" && !c.startsWith("color")) return c; } return "rgb(255,255,255)"; };
for (const s of ["body", "#subtitle", "h1", "#controls label", "#list small", "th", "td", ".explain", ".legend span", "button"]) {
  const e = document.querySelector(s), a = lum(getComputedStyle(e).color), b = lum(ground(e));
  say([s, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)]); }
say(["ground", lum(getComputedStyle(document.body).backgroundColor)]);
