// The technician's page. It is written for browsers from 2020 on (ECMAScript 2017, Chrome 80, Safari 14), and a test holds it to
// that. What the station has to say comes in the page (#setup) and by /events; nothing else is fetched.
"use strict";
(function () {
  var setup = JSON.parse(document.getElementById("setup").textContent);
  var words = setup.words, root = document.documentElement;
  var tiles = list(".tile"), source = null, tried = 0;
  var heard = Date.now();   // when the station was last heard of
  var lag = null;           // this clock less the station's, of this connection
  var shown = null;         // the status before, if nothing was missed since
  var wasLost = false;

  root.classList.add("js");

  function byId(id) { return document.getElementById(id); }
  function list(selector, inside) { return Array.prototype.slice.call((inside || document).querySelectorAll(selector)); }
  function set(node, text) { if (node && node.textContent !== text) node.textContent = text; }
  function clear(node) { while (node.firstChild) node.removeChild(node.firstChild); }
  function make(name, className, text) {
    var node = document.createElement(name);
    if (className) node.className = className;
    if (text) node.textContent = text;
    return node;
  }
  function draw(name) {
    var svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    var use = document.createElementNS("http://www.w3.org/2000/svg", "use");
    svg.setAttribute("aria-hidden", "true");
    use.setAttribute("href", "#icon-" + name);
    svg.appendChild(use);
    return svg;
  }
  function icon(node, name) { node.querySelector("use").setAttribute("href", "#icon-" + name); }
  // Fills in %s and %d, in their order.
  function say(key) {
    var args = Array.prototype.slice.call(arguments, 1);
    return words[key].replace(/%[sd%]/g, function (verb) { return verb === "%%" ? "%" : args.shift(); });
  }
  // of is a slot or one of the last boards. Without a delivery, confirmed says it.
  function deliveryOf(of) {
    return of.delivery || (of.confirmed ? "confirmed" : "waiting");
  }

  function deliveryIcon(of) {
    return deliveryOf(of) === "rejected" ? "urgent" : deliveryOf(of);
  }

  function fours(node, id) {
    clear(node);
    (id.match(/.{1,4}/g) || []).forEach(function (four) { node.appendChild(make("span", "", four)); });
  }
  // An id in groups of four, within a sentence.
  function spaced(text) { return /^[0-9a-f]{32}$/i.test(text) ? text.match(/.{4}/g).join(" ") : text; }
  function store(key, value) {
    try {
      if (value === undefined) return window.localStorage.getItem(key);
      window.localStorage.setItem(key, value);
    } catch (e) { /* a browser that keeps nothing: the setting holds until the page is closed */ }
    return null;
  }

  // Announcements, for people who listen to the page: verdicts and new messages alone, and no more than one in a moment.
  var toTell = [], telling = 0;
  function tell(text) {
    toTell.push(text);
    if (telling) return;
    telling = setTimeout(function () {
      telling = 0;
      set(byId("announce"), toTell.join(" "));
      toTell = [];
    }, 700);
  }
  var toastEnds = 0;
  function toast(text, bad) {
    var node = byId("toast");
    node.className = bad ? "toast bad" : "toast";
    set(node, text);
    node.hidden = false;
    clearTimeout(toastEnds);
    toastEnds = setTimeout(function () { node.hidden = true; }, 8000);
  }

  // ---- what the station says ----

  function showSlot(tile, slot) {
    tile.className = "tile " + slot.state;
    if (slot.acknowledge) tile.setAttribute("data-held", "");
    else tile.removeAttribute("data-held");
    var verdict = tile.querySelector(".verdict"), device = tile.querySelector(".device");
    icon(verdict, slot.state);
    set(verdict.querySelector("span"), words["state-" + slot.state]);
    device.hidden = !slot.device;
    if (device.textContent !== slot.device) fours(device, slot.device);
    set(tile.querySelector(".advice"), slot.advice);
    var acknowledge = tile.querySelector(".acknowledge");
    if (acknowledge) acknowledge.hidden = !slot.acknowledge;
    var mark = tile.querySelector(".mark"), port = tile.querySelector(".port");
    mark.hidden = slot.state !== "passed";
    icon(mark, deliveryIcon(slot));
    set(mark.querySelector("span"), words["cloud-" + deliveryOf(slot)]);
    port.hidden = slot.state !== "absent";
    set(port, slot.port);
  }

  // Each message keeps its place in the page while it is there, so that what somebody has opened stays open.
  function showNotices(notices) {
    var box = byId("notices"), old = {}, seen = {};
    list(".notice", box).forEach(function (node) { old[node.getAttribute("data-key")] = node; });
    notices.forEach(function (notice, i) {
      seen[notice.word] = (seen[notice.word] || 0) + 1;
      var key = notice.word + "." + seen[notice.word], node = old[key];
      if (!node) {
        node = byId("notice").content.firstElementChild.cloneNode(true);
        node.setAttribute("data-key", key);
        if (shown) tell(notice.text);
      }
      delete old[key];
      node.className = notice.urgent ? "notice urgent" : "notice";
      icon(node, notice.urgent ? "urgent" : "note");
      set(node.querySelector(".text"), notice.text);
      var detail = node.querySelector("details");
      detail.hidden = !notice.detail;
      set(detail.querySelector("p"), notice.detail || "");
      if (box.children[i] !== node) box.insertBefore(node, box.children[i] || null);
    });
    Object.keys(old).forEach(function (key) { box.removeChild(old[key]); });
    var work = byId("work").classList;
    work[notices.length === 1 ? "add" : "remove"]("bars1");
    work[notices.length > 1 ? "add" : "remove"]("bars2");
  }

  function showLot(lot) {
    var box = byId("lot");
    box.hidden = !lot;
    byId("work").classList[lot ? "add" : "remove"]("lotted");
    if (!lot) return;
    set(box.querySelector("h2"), lot.name ? say("page-lot-name", lot.name) : words["page-lot"]);
    set(box.querySelector(".passed-of b"), lot.planned > 0 ? lot.passed + " / " + lot.planned : String(lot.passed));
    set(box.querySelector(".failed-of b"), String(lot.failed));
    set(box.querySelector(".repeated-of b"), String(lot.repeated));
    box.querySelector(".repeated-of").hidden = !lot.repeated;
  }

  function clock(time) {
    var at = new Date(time);
    function two(n) { return (n < 10 ? "0" : "") + n; }
    return two(at.getHours()) + ":" + two(at.getMinutes());
  }

  var recentNow = "";
  function showRecent(recent) {
    var text = JSON.stringify(recent), box = byId("recent");
    if (text === recentNow) return;
    recentNow = text;
    byId("recent-none").hidden = recent.length > 0;
    clear(box);
    recent.forEach(function (board) {
      var line = make(board.device ? "a" : "div");
      if (board.device) line.href = "/boards/" + board.device;
      line.appendChild(make("span", "", clock(board.time)));
      line.appendChild(make("span", "", board.slot));
      var what = make("span", "what is-" + board.state, words["state-" + board.state]), svg = draw(board.state);
      svg.setAttribute("class", "is-" + board.state);
      line.appendChild(svg);
      line.appendChild(what);
      if (board.reason) line.appendChild(make("span", "why", words["reason-" + board.reason]));
      if (board.state === "passed") {
        line.appendChild(draw(deliveryIcon(board)));
        line.appendChild(make("span", deliveryOf(board) === "rejected" ? "" : "unseen", words["cloud-" + deliveryOf(board)]));
      }
      if (board.device) {
        var id = make("code");
        fours(id, board.device);
        line.appendChild(id);
      }
      var item = make("li");
      item.appendChild(line);
      box.appendChild(item);
    });
  }

  function showScan(scan) {
    var box = byId("waiting");
    if (!box) return;
    box.hidden = !scan;
    if (!scan) return;
    var text = spaced(scan.text);
    set(box.querySelector("p"), scan.slot ? say("page-scan-waits-slot", scan.slot, text) : say("page-scan-waits", text));
  }

  // ---- failures that are out of sight ----

  // The bar lies over the lowest 64 px: what is there is not seen. Without an observer all failures are named.
  var inSight = tiles.map(function () { return false; }), failingNow = "";
  function showFailing() {
    var box = byId("failing"), places = [];
    if (!box) return;
    tiles.forEach(function (tile, i) { if (tile.classList.contains("failed") && !inSight[i]) places.push(i); });
    box.hidden = !places.length;
    document.body.classList[places.length ? "add" : "remove"]("alarm");
    if (places.join() === failingNow) return;
    failingNow = places.join();
    list("a", box).forEach(function (link) { box.removeChild(link); });
    places.forEach(function (i) {
      var link = make("a", "", tiles[i].getAttribute("data-name"));
      link.href = "#slot-" + i;
      box.appendChild(link);
    });
  }
  if (window.IntersectionObserver) {
    var observer = new IntersectionObserver(function (entries) {
      entries.forEach(function (entry) { inSight[tiles.indexOf(entry.target.closest(".tile"))] = entry.intersectionRatio >= 0.9; });
      showFailing();
    }, { rootMargin: "0px 0px -64px 0px", threshold: [0, 0.9] });
    tiles.forEach(function (tile) { observer.observe(tile.querySelector(".verdict span")); });
  }

  // Verdicts that came while this page looked: what it did not see happen makes no sound.
  function follow(status) {
    if (!shown) return;
    var worst = "";
    status.slots.forEach(function (slot, i) {
      var before = shown.slots[i];
      if (slot.state !== "passed" && slot.state !== "failed") return;
      if (before.state === slot.state && before.since === slot.since) return;
      tell(slot.state === "failed" ? say("page-told-failed", slot.name, words["state-failed"], slot.advice) : say("page-told-passed", slot.name, words["state-passed"]));
      if (worst !== "failed") worst = slot.state;
    });
    if (worst) beep(worst);
  }

  function show(status) {
    var same = status.slots.length === tiles.length && status.slots.every(function (slot, i) { return tiles[i].getAttribute("data-name") === slot.name; });
    if (!same) { reload(); return; } // the station has other slots now
    set(byId("cloud"), status.cloud);
    showNotices(status.notices);
    status.slots.forEach(function (slot, i) { showSlot(tiles[i], slot); });
    showFailing();
    showLot(status.lot);
    showRecent(status.recent || []);
    showScan(status.scan);
    follow(status);
    shown = status;
  }

  // ---- the connection ----

  function sure() {
    root.classList.remove("unsure");
    root.classList.add("sure");
    if (wasLost) {
      wasLost = false;
      toast(words["page-again"]);
    }
  }
  // Whatever was shown before may be wrong by now: the whole page is covered.
  function unsure() {
    if (root.classList.contains("unsure")) return;
    root.classList.remove("sure");
    root.classList.add("unsure");
    shown = null;
    wasLost = true;
  }
  // A page whose station is another build by now, or has other slots, starts anew; not again and again, if that does not help.
  function reload() {
    unsure();
    var last = 0, now = Date.now();
    try {
      last = Number(window.sessionStorage.getItem("secretfree.reloaded"));
      window.sessionStorage.setItem("secretfree.reloaded", String(now));
    } catch (e) { last = 0; }
    setTimeout(function () { window.location.reload(); }, now - last < 5000 ? 5000 : 0);
    if (source) source.close();
    source = null;
    tried = Infinity;
  }

  // A page that was asleep, or whose station has died, must not show an old PASS, and does not wait for a line that is dead.
  function check() {
    var now = Date.now();
    if (now - heard >= setup.staleAfter || now < heard - 1000) {
      unsure();
      if (now - tried >= setup.staleAfter) connect();
    }
  }

  function connect() {
    if (source) source.close();
    tried = Date.now();
    lag = null;
    var mine = source = new EventSource("/events?lang=" + encodeURIComponent(setup.lang));
    mine.onmessage = function (message) {
      if (mine !== source) return;
      var id = message.lastEventId.split("."), now = Date.now();
      if (id[0] !== setup.build) { reload(); return; }
      // What a sleeping page finds in its line may be hours old. Of a new connection the first event is of now.
      if (lag === null) lag = now - Number(id[1]);
      if (Math.abs(now - Number(id[1]) - lag) >= setup.staleAfter) {
        unsure();
        connect();
        return;
      }
      lag += (now - Number(id[1]) - lag) / 10; // two clocks drift apart, by seconds in some days
      show(JSON.parse(message.data));
      if (mine !== source) return;
      heard = now;
      tried = now;
      sure();
    };
    mine.onerror = function () {
      if (mine !== source) return;
      heard = 0;
      lag = null;
      unsure();
      // The browser tries again by itself, but not after an answer other than 200.
      if (mine.readyState === 2) setTimeout(function () { if (mine === source) askAgain(); }, 2000);
    };
  }
  // Who has to log in (again) is shown where.
  function askAgain() {
    fetch("/status", { credentials: "same-origin" }).then(function (answer) {
      if (answer.status === 401 || answer.status === 403) reload(); else connect();
    }, connect);
  }

  setInterval(check, 1000);
  document.addEventListener("visibilitychange", check);
  document.addEventListener("resume", check);
  window.addEventListener("pageshow", check);
  window.addEventListener("focus", check);

  // ---- sound ----

  var soundButton = byId("sound"), audio = null;
  var soundOn = store("secretfree.sound");
  soundOn = soundOn === null ? setup.sound : soundOn === "on";

  function showSound() {
    var blocked = soundOn && (!audio || audio.state !== "running");
    soundButton.setAttribute("aria-pressed", soundOn ? "true" : "false");
    icon(soundButton, soundOn && !blocked ? "sound" : "silent");
    set(soundButton.querySelector("span"), words[blocked ? "page-sound-touch" : soundOn ? "page-sound-on" : "page-sound-off"]);
  }
  // Browsers play nothing before somebody has touched the page.
  function wake() {
    var Audio = window.AudioContext || window.webkitAudioContext;
    if (!soundOn || !Audio) return Promise.resolve();
    if (!audio) {
      audio = new Audio();
      audio.onstatechange = showSound;
    }
    var woken = audio.state === "running" ? null : audio.resume();
    return Promise.resolve(woken).then(showSound, showSound);
  }
  function tone(hertz, start, length) {
    var oscillator = audio.createOscillator(), gain = audio.createGain(), at = audio.currentTime + start;
    oscillator.type = hertz < 400 ? "square" : "sine";
    oscillator.frequency.value = hertz;
    gain.gain.setValueAtTime(0.0001, at);
    gain.gain.linearRampToValueAtTime(0.4, at + 0.01);
    gain.gain.setValueAtTime(0.4, at + length - 0.03);
    gain.gain.linearRampToValueAtTime(0.0001, at + length);
    oscillator.connect(gain);
    gain.connect(audio.destination);
    oscillator.start(at);
    oscillator.stop(at + length);
  }
  // PASS goes up, FAIL is low and comes three times: they differ without an ear for pitch.
  function beep(verdict) {
    if (!soundOn || !audio || audio.state !== "running") return;
    if (verdict === "passed") {
      tone(880, 0, 0.12);
      tone(1320, 0.13, 0.2);
    } else {
      [0, 0.3, 0.6].forEach(function (start) { tone(220, start, 0.22); });
    }
  }
  function toggleSound() {
    soundOn = !soundOn || (audio ? audio.state !== "running" : true);
    store("secretfree.sound", soundOn ? "on" : "off");
    showSound();
    wake().then(function () { if (soundOn) beep("passed"); });
  }
  soundButton.addEventListener("click", toggleSound);
  document.addEventListener("pointerdown", function (event) { if (!soundButton.contains(event.target)) wake(); });
  document.addEventListener("keydown", function () { wake(); });
  showSound();

  // ---- full screen ----

  var screenButton = byId("screen");
  var enter = root.requestFullscreen || root.webkitRequestFullscreen;
  function full() { return document.fullscreenElement || document.webkitFullscreenElement; }
  function toggleScreen() {
    var done = full() ? (document.exitFullscreen || document.webkitExitFullscreen).call(document) : enter.call(root);
    if (done && done.catch) done.catch(function () { /* a browser that does not want to: nothing changes */ });
  }
  function showScreen() {
    screenButton.setAttribute("aria-pressed", full() ? "true" : "false");
    set(screenButton.querySelector("span"), words[full() ? "page-screen-leave" : "page-screen-full"]);
  }
  screenButton.hidden = !enter;
  screenButton.addEventListener("click", toggleScreen);
  document.addEventListener("fullscreenchange", showScreen);
  document.addEventListener("webkitfullscreenchange", showScreen);

  // ---- panels: languages and help ----

  var panel = null, before = null;
  function open(id) {
    if (panel) close();
    before = document.activeElement;
    panel = byId(id);
    panel.hidden = false;
    var first = panel.querySelector("[aria-current]") || panel.querySelector("a, button");
    if (first) first.focus();
  }
  function close() {
    if (!panel) return;
    panel.hidden = true;
    panel = null;
    if (before && before.focus) before.focus();
  }
  byId("language").addEventListener("click", function () { open("languages"); });
  byId("help").addEventListener("click", function () { open("helping"); });
  list(".panel").forEach(function (node) {
    node.addEventListener("click", function (event) { if (event.target === node || event.target.className === "close") close(); });
    // The keyboard stays in the panel.
    node.addEventListener("keydown", function (event) {
      if (event.key !== "Tab") return;
      var stops = list("a, button", node), first = stops[0], last = stops[stops.length - 1];
      if (event.shiftKey && document.activeElement === first) { event.preventDefault(); last.focus(); }
      if (!event.shiftKey && document.activeElement === last) { event.preventDefault(); first.focus(); }
    });
  });

  // ---- scanner and keys ----

  var form = byId("scan");

  function answered(text, bad) {
    toast(text, bad);
    if (bad) beep("failed");
  }
  // post sends a field of a form; lost is what to say if there is no answer.
  function post(to, field, value, ok, lost) {
    fetch(to.getAttribute("action"), {
      method: "POST", credentials: "same-origin", body: field + "=" + encodeURIComponent(value),
      headers: { "Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json" }
    }).then(function (got) {
      if (got.ok) {
        if (ok) answered(ok, false);
        return null;
      }
      if (got.status === 401 || got.status === 403) { reload(); return null; }
      return got.json().then(function (said) { if (said.text || lost) answered(said.text || lost, true); });
    }).catch(function () { if (lost) answered(lost, true); });
  }
  function scan(text) {
    if (!form) return;
    text = text.trim();
    if (!text) return;
    if (root.classList.contains("unsure")) {
      byId("lost-scan").hidden = false;
      beep("failed");
      return;
    }
    byId("toast").hidden = true; // the answer to the scan before
    post(form, "text", text, say("page-scan-read", spaced(text)), words["page-scan-lost"]);
  }
  function unscan() { if (form && !byId("waiting").hidden) post(form, "text", "", "", words["page-scan-lost"]); }

  if (form) {
    form.addEventListener("submit", function (event) {
      event.preventDefault();
      var input = form.querySelector("input[name=text]");
      scan(input.value);
      input.value = "";
    });
    byId("waiting").addEventListener("submit", function (event) { event.preventDefault(); unscan(); });
  }

  // A scanner types a line fast and ends it with Enter (some with Tab), whatever has the focus. A shortcut is one key alone:
  // with silence before and after it.
  var GAP = 250, LEAST = 3;
  var burst = "", last = -Infinity, single = 0, swallowed = false;
  function isField(node) { return node && (/^(INPUT|TEXTAREA|SELECT)$/.test(node.tagName) || node.isContentEditable); }

  document.addEventListener("keydown", function (event) {
    if (event.isComposing || event.keyCode === 229 || event.ctrlKey || event.altKey || event.metaKey) return;
    var at = event.timeStamp, quick = at - last < GAP;
    if (event.key === "Escape") {
      if (panel) close(); else if (isField(event.target)) event.target.blur(); else unscan();
      return;
    }
    if (isField(event.target)) return;
    if (event.key === "Enter" || event.key === "Tab") {
      clearTimeout(single);
      if (quick && burst.length >= LEAST) {
        event.preventDefault();
        event.stopPropagation();
        swallowed = true; // or the button that has the focus would take it for a press
        scan(burst);
      }
      burst = "";
      return;
    }
    if (!event.key || event.key.length !== 1) return;
    if (event.repeat) { clearTimeout(single); return; }
    clearTimeout(single);
    burst = quick ? burst + event.key : event.key;
    last = at;
    if (burst.length > 1) {
      event.preventDefault();
      swallowed = true;
    } else if (burst.length === 1) {
      single = setTimeout(shortcut, GAP, event.key);
    }
  }, true);

  ["keypress", "keyup"].forEach(function (type) {
    document.addEventListener(type, function (event) {
      if (!swallowed || isField(event.target)) return;
      event.preventDefault();
      event.stopPropagation();
      if (type === "keyup" && event.key !== "Shift") swallowed = false;
    }, true);
  });

  // Without this script the form loads the page anew. With it the page stays, and so does its sound.
  list(".acknowledge").forEach(function (node) {
    node.addEventListener("submit", function (event) {
      event.preventDefault();
      // If there is no answer, the tile still shows the leak, or the page is covered.
      post(node, "slot", node.querySelector("button").value, "", "");
    });
  });

  // The first leak that waits.
  function acknowledge() {
    var waiting = list(".acknowledge").filter(function (form) { return !form.hidden; })[0];
    if (waiting && !root.classList.contains("unsure")) waiting.querySelector("button").click();
  }

  function shortcut(key) {
    burst = "";
    switch (key.toLowerCase()) {
      case "s": toggleSound(); break;
      case "f": if (enter) toggleScreen(); break;
      case "l": open("languages"); break;
      case "?": open("helping"); break;
      case "a": acknowledge(); break;
      case "/": if (form) form.querySelector("input[name=text]").focus(); break;
    }
  }

  connect();
})();
