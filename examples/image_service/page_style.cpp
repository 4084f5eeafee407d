// SPDX-License-Identifier: BSL-1.0
#include "page.hpp"

namespace image_service {

std::string_view style_sheet() {
  return R"css(
:root {
  color-scheme: light dark;
  --ground: #f3f6f8;  --surface: #ffffff;  --line: #d9e2e8;  --ink: #12242f;  --quiet: #54697a;
  --sea: #17587a;  --busy: #2b8cbe;  --alarm: #c2410c;  --alarm-soft: #fdeee4;  --good: #1b7a4b;  --good-soft: #e5f5ec;
  --cell: #e6eef3;  --shadow: 0 1px 2px rgb(18 36 47 / 8%), 0 6px 20px rgb(18 36 47 / 6%);
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #0b151c;  --surface: #13212b;  --line: #24394a;  --ink: #e4edf3;  --quiet: #93a9b8;
    --sea: #7cc0e3;  --busy: #3a9fd2;  --alarm: #ff9a5c;  --alarm-soft: #34200f;  --good: #67d39b;  --good-soft: #10291d;
    --cell: #1d303d;  --shadow: 0 1px 2px rgb(0 0 0 / 40%);
  }
}

* { box-sizing: border-box; }
[hidden] { display: none !important; }
body {
  margin: 0 auto;  max-width: 78rem;  padding: clamp(1rem, 3vw, 2.5rem);
  background: var(--ground);  color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
}
h1, h2, p, dl, dd, ul { margin: 0; }
h1 { display: flex; align-items: center; gap: .75rem; font-size: clamp(1.4rem, 4vw, 2rem); line-height: 1.2; letter-spacing: -.015em; }
h2 { font-size: 1.05rem; }
a { color: var(--sea); }
:focus-visible { outline: 3px solid var(--busy); outline-offset: 2px; }
header p { margin-top: .6rem; max-width: 46rem; color: var(--quiet); }
header strong { color: var(--ink); }

.offline { margin-top: 1rem; padding: .75rem 1rem; border-radius: .6rem; background: var(--alarm-soft); color: var(--alarm); font-weight: 600; }

.panels { display: grid; gap: 1rem; margin-top: 1.5rem; }
@media (min-width: 56rem) { .panels { grid-template-columns: 1fr 1fr; } }
.panel { padding: 1.1rem 1.25rem 1.25rem; border: 1px solid var(--line); border-radius: 1rem; background: var(--surface); box-shadow: var(--shadow); min-width: 0; display: flex; flex-direction: column; }
.panel-head { display: flex; justify-content: space-between; align-items: baseline; margin-bottom: .8rem; }
.panel-head a { font-size: .875rem; }

/* One compartment for each worker process: filled while it works. The last ones that crashed stay behind, in orange. */
.hull { display: flex; flex: 1; gap: 4px; min-height: 2.25rem; max-height: 6rem; padding: 4px; border-radius: .4rem .4rem 1.1rem 1.1rem; background: var(--cell); }
.hull span { flex: 1; border-radius: 3px; background: var(--surface); transition: background-color .15s; }
.hull span:first-child { border-bottom-left-radius: .85rem; }
.hull span:last-child { border-bottom-right-radius: .85rem; }
.hull span.busy { background: var(--busy); }
.hull span.flooded { animation: flood 1.8s ease-in; }
@keyframes flood { 0%, 45% { background: var(--alarm); } }

.figures { display: grid; grid-template-columns: repeat(3, 1fr); gap: .9rem .75rem; margin-top: 1rem; }
.figures dt { font-size: .8125rem; color: var(--quiet); }
.figures dd { font-size: 1.5rem; font-weight: 650; line-height: 1.2; font-variant-numeric: tabular-nums; }
.figures dd small { font-size: .875rem; font-weight: 400; color: var(--quiet); }
.figures dd.alarm { color: var(--alarm); }

.try { flex: 1; display: grid; gap: .75rem; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); }
.drop, .try button {
  display: flex; flex-direction: column; align-items: center; justify-content: center; gap: .2rem;
  min-height: 5.5rem; padding: .75rem; border-radius: .75rem; text-align: center; cursor: pointer; font: inherit;
}
.drop { position: relative; border: 2px dashed var(--line); color: var(--ink); }
.drop:hover, .drop.over, .drop:focus-within { border-color: var(--busy); background: var(--cell); }
.drop input { position: absolute; inset: 0; width: 100%; height: 100%; opacity: 0; cursor: pointer; }
.drop small { color: var(--quiet); }
@media (pointer: coarse) { .fine-pointer { display: none; } }
.try button { border: 0; background: var(--alarm-soft); color: var(--alarm); transition: filter .15s; }
.try button:hover { filter: brightness(.96); }
@media (prefers-color-scheme: dark) { .try button:hover { filter: brightness(1.25); } }
.try button:disabled { opacity: .6; cursor: progress; }

.answer { display: grid; gap: .6rem; }
.answer:not(:empty) { margin-top: 1rem; }
.answer p { padding: .6rem .85rem; border-radius: .6rem; background: var(--cell); font-size: .9375rem; overflow-wrap: anywhere; }
.answer p.bad { background: var(--alarm-soft); }
.answer p.good { background: var(--good-soft); }
.answer p strong { margin-right: .35rem; }
.answer p.bad strong { color: var(--alarm); }
.answer p.good strong { color: var(--good); }
.answer img { display: block; max-width: 100%; height: auto; max-height: 16rem; border-radius: .6rem; background: linear-gradient(160deg, #5d7789, #33495a); }
.hint { margin-top: .75rem; color: var(--quiet); }

.gallery-head { display: flex; flex-wrap: wrap; align-items: baseline; gap: .1rem .75rem; margin: 2rem 0 .85rem; }
.gallery-head p { color: var(--quiet); overflow-wrap: anywhere; }
.gallery { display: grid; gap: clamp(.6rem, 1.5vw, 1rem); padding: 0; list-style: none; grid-template-columns: repeat(auto-fill, minmax(min(10rem, 44vw), 1fr)); }
@media (min-width: 40rem) { .gallery { grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); } }
.card { display: flex; flex-direction: column; height: 100%; border-radius: .85rem; overflow: hidden; border: 1px solid var(--line); background: var(--surface); color: inherit; text-decoration: none; transition: transform .15s, box-shadow .15s; }
.card:hover { box-shadow: var(--shadow); transform: translateY(-2px); }
.card img { display: block; width: 100%; height: auto; aspect-ratio: 16 / 10; object-fit: cover; background: var(--cell); }
/* Logos on nothing are white as often as black: a ground between the two shows both. */
.card.transparent img { object-fit: contain; padding: 8%; background: linear-gradient(160deg, #5d7789, #33495a); }
.card img.failed { opacity: .25; }
.card span { display: block; margin: 0 .8rem; overflow: hidden; }
.card .title { margin-top: .6rem; font-size: .9375rem; font-weight: 600; line-height: 1.3; overflow-wrap: anywhere; display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 2; }
.card .details { margin-top: auto; margin-bottom: .7rem; font-size: .8125rem; color: var(--quiet); text-overflow: ellipsis; white-space: nowrap; }
.sandbox { margin-top: 2.5rem; }
.sandbox summary { cursor: pointer; font-weight: 650; }
.sandbox pre { margin: .75rem 0 0; padding: 1rem; overflow-x: auto; border: 1px solid var(--line); border-radius: .85rem; background: var(--surface); font-size: .8125rem; }
footer { margin-top: 2.5rem; padding-top: 1rem; border-top: 1px solid var(--line); color: var(--quiet); font-size: .875rem; }
@media (prefers-reduced-motion: reduce) { *, ::before, ::after { transition: none !important; animation: none !important; } }
)css";
}

}  // namespace image_service
