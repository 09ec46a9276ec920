"""The A/B page: `__PAIRS__`, `__QUESTIONS__` and `__COLUMNS__` are replaced by JSON."""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Which edit is better?</title><link rel="icon" href="data:,">
<style>
body{font:16px sans-serif;max-width:1000px;margin:1.5em auto;padding:0 1em}
.clips{display:flex;gap:1em;flex-wrap:wrap}figure{margin:0;flex:1;min-width:200px}figure img{width:100%;image-rendering:pixelated}
figcaption{text-align:center;font-weight:bold}fieldset{margin:1em 0;border:1px solid #ccc}label{margin-right:2em}button{font-size:1.1em;padding:.4em 1.5em}
[hidden]{display:none}
</style>
<main id="start"><h1>Which edit is better?</h1>
<p>You see a clip, an instruction, and two edits of the clip. Please say which edit is better, <span id="count"></span> times. Who made an edit is not shown.</p>
<button id="begin">Begin</button></main>
<main id="task" hidden><p id="progress"></p><h2 id="instruction"></h2>
<div class="clips">
<figure><img id="source" alt="the clip"><figcaption>the clip</figcaption></figure>
<figure><img id="left" alt="left edit"><figcaption>left</figcaption></figure>
<figure><img id="right" alt="right edit"><figcaption>right</figcaption></figure>
</div>
<form id="form"></form><button id="next" disabled>Next</button></main>
<main id="end" hidden><h1>Thank you</h1><p id="sent">Please download your answers and send them to whoever asked you.</p><a id="download"><button>Download the answers</button></a></main>
<script>
"use strict";
const pairs = __PAIRS__, questions = __QUESTIONS__, columns = __COLUMNS__;
const at = id => document.getElementById(id);
const draw = most => { const limit = 2 ** 32 - 2 ** 32 % most, word = new Uint32Array(1); do crypto.getRandomValues(word); while (word[0] >= limit); return word[0] % most; };
const participant = Array.from(crypto.getRandomValues(new Uint8Array(8)), byte => byte.toString(16).padStart(2, "0")).join("");
const order = pairs.map(pair => ({pair, left: draw(2) ? "first" : "second"}));
for (let i = order.length - 1; i > 0; i--) { const j = draw(i + 1); [order[i], order[j]] = [order[j], order[i]]; }
const rows = [columns];
let place = -1, shown = 0;

function other(name) { return name === "first" ? "second" : "first"; }

function show() {
  const {pair, left} = order[place];
  at("progress").textContent = `${place + 1} of ${order.length}`;
  at("instruction").textContent = pair.instruction;
  at("source").src = pair.source; at("left").src = pair[left]; at("right").src = pair[other(left)];
  at("form").replaceChildren(...Object.entries(questions).map(([name, words]) => {
    const group = document.createElement("fieldset"), legend = document.createElement("legend");
    legend.textContent = words; group.append(legend);
    for (const side of ["left", "same", "right"]) {
      const label = document.createElement("label"), input = document.createElement("input");
      Object.assign(input, {type: "radio", name, value: side, id: `${name}-${side}`});
      label.append(input, side === "same" ? " no difference" : ` ${side}`); group.append(label);
    }
    return group;
  }));
  at("next").disabled = true; shown = performance.now();
}

function keep() {
  const {pair, left} = order[place], seconds = ((performance.now() - shown) / 1000).toFixed(1), chosen = new FormData(at("form"));
  for (const name of Object.keys(questions)) {
    const side = chosen.get(name), choice = side === "same" ? "same" : side === "left" ? left : other(left);
    rows.push([participant, pair.pair, name, choice, left, seconds]);
  }
}

function finish() {
  const text = rows.map(row => row.join(",")).join("\\n") + "\\n";
  at("task").hidden = true; at("end").hidden = false;
  at("download").href = URL.createObjectURL(new Blob([text], {type: "text/csv"})); at("download").download = `answers-${participant}.csv`;
  if (location.protocol.startsWith("http"))
    fetch("/answers", {method: "POST", body: text}).then(reply => { if (reply.ok) at("sent").textContent = "Your answers have been kept. You can close this page."; }, () => {});
}

at("count").textContent = pairs.length;
at("form").addEventListener("change", () => { at("next").disabled = [...new FormData(at("form")).keys()].length < Object.keys(questions).length; });
at("begin").addEventListener("click", () => { at("start").hidden = true; at("task").hidden = false; place = 0; show(); });
at("next").addEventListener("click", () => { keep(); if (++place < order.length) show(); else finish(); });
</script>
</html>
"""
