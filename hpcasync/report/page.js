"use strict";
// Plots: the figures come as Plotly's JSON. Timeline: bars of the chosen stretch of time, drawn anew when it changes.

const PLOT_CONFIG = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] };

function readJson(id) {
  return JSON.parse(document.getElementById(id).textContent);
}

function drawFigures() {
  const figures = readJson("figures");
  for (const [name, figure] of Object.entries(figures)) {
    const place = document.getElementById(name);
    if (place) Plotly.newPlot(place, figure.data, figure.layout, PLOT_CONFIG);
  }
}

// A click on a name hides its configuration in every plot.
function connectLegend() {
  const hidden = new Set();
  for (const button of document.querySelectorAll("#legend button")) {
    button.addEventListener("click", () => {
      const group = button.dataset.group;
      if (!hidden.delete(group)) hidden.add(group);
      button.setAttribute("aria-pressed", String(!hidden.has(group)));
      for (const place of document.querySelectorAll(".js-plotly-plot")) {
        const indices = place.data.flatMap((trace, index) => (trace.legendgroup === group ? [index] : []));
        if (indices.length) Plotly.restyle(place, { visible: !hidden.has(group) }, indices);
      }
    });
  }
}

function unpack(text, Type) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  return new Type(bytes.buffer);
}

function clock(seconds) {
  const digits = seconds % 1 ? 2 : 0;
  const minutes = Math.floor(seconds / 60);
  const rest = (seconds - 60 * minutes).toFixed(digits).padStart(digits ? 5 : 2, "0");
  return `${minutes}:${rest}`;
}

class Timeline {
  constructor(runs) {
    this.runs = runs;
    this.chosen = document.getElementById("timeline-run");
    this.from = document.getElementById("timeline-from");
    this.length = document.getElementById("timeline-length");
    this.slider = document.getElementById("timeline-slider");
    this.note = document.getElementById("timeline-note");
    runs.forEach((run, index) => this.chosen.add(new Option(run.name, index)));
    this.chosen.addEventListener("change", () => this.select());
    this.from.addEventListener("change", () => this.show(Number(this.from.value)));
    this.slider.addEventListener("input", () => this.show(Number(this.slider.value)));
    this.length.addEventListener("change", () => this.show(this.begin));
    document.getElementById("timeline-back").addEventListener("click", () => this.show(this.begin - this.seconds));
    document.getElementById("timeline-on").addEventListener("click", () => this.show(this.begin + this.seconds));
    this.select();
  }

  get seconds() {
    return Number(this.length.value);
  }

  select() {
    this.run = this.runs[Number(this.chosen.value)];
    for (const rank of this.run.ranks) {
      if (rank.spans) continue;
      rank.spans = {
        start: unpack(rank.start, Float64Array),
        duration: unpack(rank.duration, Float32Array),
        activity: unpack(rank.activity, Uint8Array),
        detail: unpack(rank.detail, Int32Array),
      };
    }
    this.drawTotals();
    this.drawOverview();
    this.show(this.run.begin + (this.lastSecond() - this.run.begin) / 2);
  }

  lastSecond() {
    return this.run.cut === null ? this.run.seconds : this.run.cut;
  }

  show(begin) {
    const last = Math.max(this.run.begin, this.lastSecond() - this.seconds);
    this.begin = Math.min(Math.max(begin || 0, this.run.begin), last);
    this.slider.min = this.run.begin;
    this.slider.max = last;
    this.slider.step = this.seconds / 20;
    this.slider.value = this.begin;
    this.from.value = this.begin.toFixed(2);
    this.drawBars();
    const cut = this.run.cut === null ? "" : ` Bars are in the page up to ${clock(this.run.cut)} of ${clock(this.run.seconds)}: choose others with --timeline-from and --timeline-to.`;
    this.note.textContent = `${clock(this.begin)} to ${clock(this.begin + this.seconds)} (minutes:seconds).${cut}`;
  }

  // Bars per activity. Neighbours of one activity that are closer than a pixel or so become one.
  collect() {
    const end = this.begin + this.seconds;
    const gap = this.seconds / 1200;
    const bars = this.run.activities.map(() => ({ base: [], x: [], y: [], text: [] }));
    for (const rank of this.run.ranks) {
      const { start, duration, activity, detail } = rank.spans;
      let open = null;
      const close = () => {
        if (!open) return;
        const bar = bars[open.activity];
        bar.base.push(open.start);
        bar.x.push(open.end - open.start);
        bar.y.push(rank.name);
        bar.text.push(this.describe(open));
        open = null;
      };
      for (let i = firstAfter(start, this.begin - 600); i < start.length && start[i] < end; i++) {
        const stop = start[i] + duration[i];
        if (stop < this.begin) continue;
        if (open && open.activity === activity[i] && start[i] - open.end < gap && stop - open.start < 12 * gap) {
          open.end = stop;
          open.count += 1;
          continue;
        }
        close();
        open = { activity: activity[i], start: start[i], end: stop, detail: detail[i], count: 1, own: duration[i] };
      }
      close();
    }
    return bars;
  }

  describe(bar) {
    const name = this.run.activities[bar.activity].name;
    if (bar.count > 1) return `${bar.count} × ${name}`;
    const what = bar.detail < 0 ? "" : name === "apply" ? `, version ${bar.detail}` : name === "accumulate" ? `, worker ${bar.detail}` : "";
    return `${name}${what}: ${(1000 * bar.own).toFixed(1)} ms`;
  }

  drawBars() {
    const bars = this.collect();
    const traces = this.run.activities.map((activity, index) => ({
      type: "bar", orientation: "h", name: activity.name, ...bars[index], textposition: "none", width: 0.62,
      marker: { color: activity.colour, line: { width: 0 } },
      hovertemplate: "%{text}<extra>%{y}</extra>",
    })).filter((trace) => trace.x.length);
    const names = this.run.ranks.map((rank) => rank.name);
    Plotly.react("timeline-bars", traces, {
      ...BASE_LAYOUT,
      barmode: "overlay", hovermode: "closest", height: 96 + 34 * names.length,
      margin: { l: 190, r: 16, t: 28, b: 44 },
      xaxis: { ...BASE_AXIS, range: [this.begin, this.begin + this.seconds], title: { text: "seconds since the first span", font: { size: 13 } } },
      yaxis: { type: "category", categoryorder: "array", categoryarray: names, range: [names.length - 0.5, -0.5], ticks: "", fixedrange: true },
      legend: { orientation: "h", y: 1.01, yanchor: "bottom", x: 0 },
    }, PLOT_CONFIG);
  }

  drawOverview() {
    const { edges, roles } = this.run.overview;
    const middle = edges.slice(1).map((edge, index) => (edge + edges[index]) / 2);
    const traces = [];
    const layout = {
      ...BASE_LAYOUT, height: 120 + 120 * roles.length, hovermode: "x unified", showlegend: false,
      margin: { l: 72, r: 16, t: 24, b: 44 }, annotations: [],
    };
    roles.forEach((role, index) => {
      const suffix = index ? String(index + 1) : "";
      for (const activity of this.run.activities) {
        if (!role.shares[activity.name]) continue;
        traces.push({
          type: "scatter", mode: "none", stackgroup: role.name, name: activity.name, x: middle, y: role.shares[activity.name],
          fillcolor: activity.colour, xaxis: "x", yaxis: `y${suffix}`, hovertemplate: "%{y:.0%}",
        });
      }
      const height = 1 / roles.length;
      layout[`yaxis${suffix}`] = { ...BASE_AXIS, domain: [1 - (index + 1) * height + 0.06, 1 - index * height - 0.04], range: [0, 1], tickformat: ".0%", nticks: 3, title: { text: role.name, font: { size: 13 } } };
    });
    layout.xaxis = { ...BASE_AXIS, anchor: roles.length > 1 ? "y2" : "y", range: [0, this.run.seconds], title: { text: "seconds since the first span; click to see that time below", font: { size: 13 } } };
    const place = document.getElementById("timeline-overview");
    Plotly.react(place, traces, layout, PLOT_CONFIG).then(() => {
      place.removeAllListeners("plotly_click");
      place.on("plotly_click", (event) => this.show(event.points[0].x - this.seconds / 2));
    });
  }

  drawTotals() {
    const used = this.run.activities.filter((activity) => this.run.ranks.some((rank) => rank.totals[activity.name]));
    const table = document.getElementById("timeline-totals");
    table.replaceChildren();
    const head = table.createTHead().insertRow();
    const addHead = (text, colour) => {
      const cell = document.createElement("th");
      if (colour) {
        const swatch = document.createElement("span");
        swatch.className = "swatch";
        swatch.style.background = colour;
        cell.append(swatch);
      }
      cell.append(text);
      head.append(cell);
    };
    addHead("share of time");
    used.forEach((activity) => addHead(activity.name, activity.colour));
    addHead("outside", this.run.outside);
    const body = table.createTBody();
    for (const rank of this.run.ranks) {
      const row = body.insertRow();
      const name = document.createElement("th");
      name.textContent = rank.name;
      row.append(name);
      let rest = 1;
      for (const activity of used) {
        const share = rank.totals[activity.name];
        rest -= share || 0;
        row.insertCell().textContent = share === undefined ? "" : percent(share);
      }
      row.insertCell().textContent = percent(Math.max(0, rest));
    }
  }
}

function percent(share) {
  return `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;
}

// Index of the first start at or after a time.
function firstAfter(start, time) {
  let low = 0;
  let high = start.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (start[middle] < time) low = middle + 1;
    else high = middle;
  }
  return low;
}

const BASE_AXIS = { gridcolor: "#e7e3dd", zeroline: false, linecolor: "#b9b3aa", ticks: "outside", tickcolor: "#b9b3aa", ticklen: 4 };
const BASE_LAYOUT = {
  font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: "#2b2a28" },
  paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
  hoverlabel: { bgcolor: "#ffffff", bordercolor: "#d5cfc6" },
  modebar: { bgcolor: "rgba(0,0,0,0)", color: "#c4bdb2", activecolor: "#0067a8" },
};

drawFigures();
connectLegend();
const timelines = readJson("timelines");
if (timelines.length) new Timeline(timelines);
document.body.dataset.drawn = "yes";
