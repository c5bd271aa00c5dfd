package station

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"

	"secretfree/fixtures"
	"secretfree/station/board"
	"secretfree/uart"
)

// recorded is a board of the campaign: what it says, from two good dialogues
// with it, by what it is asked.
type recorded struct {
	firmware  string // a dialect of fixtures
	device    board.DeviceID
	key       board.Key
	start     []byte            // what it prints by itself
	eol       string            // the end of a line that nobody asked for
	nonces    []string          // that it has signed
	answers   map[string][]byte // by the command, without its end; of ti-csr, of the requests, by nonce
	questions []question        // of ti-csr
	length    int               // bytes of a good dialogue
	unknown   []byte            // the answer of ti-at to a command that it does not know; nil is TI's
}

// question is one of the CSR example, with its good answer, and what it prints
// when it has that. The last one prints the request.
type question struct{ answer, then string }

// recordPool records boards of every firmware. The same seed gives the same
// boards, bit for bit.
func recordPool(t *testing.T, each int, seed uint64) map[string][]*recorded {
	cryptotest.SetGlobalRandom(t, seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	pool := map[string][]*recorded{}
	for _, firmware := range []string{fixtures.DialectAT, fixtures.DialectCSR, fixtures.DialectReport} {
		for i := range each {
			secret := make([]byte, 32)
			var device [16]byte
			for j := range secret {
				secret[j] = byte(1 + rng.IntN(250))
			}
			for j := range device {
				device[j] = byte(rng.IntN(256))
			}
			key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), secret)
			if err != nil {
				t.Fatal(err)
			}
			make := func(quiet bool) *fixtures.Board {
				b := &fixtures.Board{Device: device, Key: key, Dialect: firmware, Quiet: quiet}
				if i%3 == 1 {
					b.Hash = "sha256"
				}
				switch firmware {
				case fixtures.DialectAT:
					b.Build = []string{fixtures.Build112, fixtures.Build111, fixtures.BuildTextMode}[i%3]
					b.RawSignatures = i%4 == 3
				case fixtures.DialectCSR:
					b.DefaultName = []string{"", "", "", fixtures.NameJoined, fixtures.NamePadded}[i%5]
				case fixtures.DialectReport:
					b.RawSignatures = i%2 == 1
				}
				return b
			}
			nonce := func(n int) string {
				text := strings.Builder{}
				for range n {
					text.WriteByte("ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz23456789"[rng.IntN(57)])
				}
				return text.String()
			}
			synctest.Test(t, func(t *testing.T) { pool[firmware] = append(pool[firmware], record(t, make, nonce)) })
		}
	}
	return pool
}

func record(t *testing.T, make func(quiet bool) *fixtures.Board, nonce func(int) string) *recorded {
	b := make(false)
	r := &recorded{firmware: b.Dialect, device: board.DeviceID(b.Device), answers: map[string][]byte{}, eol: "\r\n"}
	if b.Dialect == fixtures.DialectAT {
		if r.eol = "\n\r"; b.Build == fixtures.BuildTextMode {
			r.eol = "\n\r\r"
		}
	}
	var err error
	if r.key, err = board.ParseKey(b.SPKI()); err != nil {
		t.Fatal(err)
	}
	onLine(t, b, func(c net.Conn) { // its start
		buf := [4096]byte{}
		for {
			c.SetReadDeadline(time.Now().Add(time.Second))
			n, err := c.Read(buf[:])
			if r.start = append(r.start, buf[:n]...); err != nil {
				return
			}
		}
	})
	quiet := b.Dialect != fixtures.DialectCSR
	for range 2 {
		onLine(t, make(quiet), func(c net.Conn) {
			d, err := uart.DialectByName(b.Dialect)
			if err != nil {
				t.Fatal(err)
			}
			l := uart.NewLine(c, uart.LineOptions{Nonce: nonce})
			if err := d.Detect(t.Context(), l); err != nil {
				t.Fatal(err)
			}
			if report, err := d.Read(t.Context(), l); err != nil || report.Device != r.device || string(report.SPKI) != string(r.key.SPKI()) {
				t.Fatalf("a good board of dialect %s: %v", b.Dialect, err)
			}
			r.learn(l.Transcript())
		})
	}
	return r
}

// onLine serves a board for as long as f runs.
func onLine(t *testing.T, b *fixtures.Board, f func(c net.Conn)) {
	ours, theirs := net.Pipe()
	defer ours.Close()
	defer theirs.Close()
	ctx, remove := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- b.Serve(ctx, theirs) }()
	f(ours)
	remove()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// learn takes a good dialogue apart. Without an echo there is nothing to tell a
// late end of an answer from the next one, but the firmware that does not echo
// has none.
func (r *recorded) learn(t *uart.Transcript) {
	type exchange struct {
		sent string
		got  []byte
	}
	exchanges := []*exchange{{}}
	length := 0
	for _, chunk := range t.Chunks {
		last := exchanges[len(exchanges)-1]
		switch chunk.Direction {
		case uart.Drawn:
			r.nonces = append(r.nonces, string(chunk.Bytes))
		case uart.Sent:
			exchanges = append(exchanges, &exchange{sent: string(chunk.Bytes)})
		case uart.Received:
			last.got = append(last.got, chunk.Bytes...)
			length += len(chunk.Bytes)
		}
	}
	r.length = max(r.length, length)
	var before *exchange
	for _, e := range exchanges[1:] {
		if r.firmware != fixtures.DialectReport {
			if i := bytes.Index(e.got, []byte(e.sent[:len(e.sent)-1])); i > 0 && before != nil {
				before.got, e.got = append(before.got, e.got[:i]...), e.got[i:]
			}
			e.got = bytes.TrimPrefix(e.got, []byte(e.sent[:len(e.sent)-1]))
		}
		before = e
	}
	switch r.firmware {
	case fixtures.DialectCSR:
		r.questions = nil
		for _, e := range exchanges[1:] {
			r.questions = append(r.questions, question{answer: strings.TrimSuffix(e.sent, "\r"), then: string(e.got)})
		}
		r.answers[r.nonces[len(r.nonces)-1]] = before.got
	default:
		for _, e := range exchanges[1:] {
			command := strings.Trim(e.sent, ";\r")
			if _, have := r.answers[command]; !have { // the last of a dialogue may lack its end
				r.answers[command] = e.got
			}
		}
	}
}

// csrUnit is the number of the question that the nonce answers.
func (r *recorded) csrUnit() int {
	for i, q := range r.questions {
		if _, ok := r.answers[q.answer]; ok {
			return i
		}
	}
	return -1
}

// op is what a player does on the line: after a pause it says something, or
// takes the line away.
type op struct {
	pause  time.Duration
	text   []byte
	hangUp bool
}

// player plays recorded boards to a reader, and does what the plan says to what
// they say.
type player struct {
	mu     sync.Mutex // the reader draws nonces while it plays
	rng    *rand.Rand
	now    *recorded
	next   *recorded // takes the place of now where the plan says so
	drawn  int       // nonces of now
	plan   []mutation
	said   int // bytes, before what the plan does to them; plan counts in these
	heard  int
	spoil  int // which byte that it hears has a bit turned; negative is none
	line   []byte
	turn   int    // of ti-csr: the number of the question
	unit   string // of ti-csr: the nonce
	mute   bool   // it says nothing any more
	broken bool   // until it starts anew it does nothing
	out    chan op
	pause  time.Duration // before the next op
}

// mutation is what happens to the byte at a place, or there.
type mutation struct {
	kind string
	at   int
	n    int // of bytes, bits or whatever the kind needs
	wait time.Duration
}

// nonce is SlotConfig.Nonce: what the board on the line has signed.
func (p *player) nonce(n int) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.drawn++
	if p.drawn <= len(p.now.nonces) {
		return p.now.nonces[p.drawn-1]
	}
	return fmt.Sprintf("%0*d", n, p.drawn) // nobody has signed it
}

// play runs the board until the reader hangs up.
func (p *player) play(line net.Conn) {
	var both sync.WaitGroup
	both.Go(func() {
		defer line.Close()
		for o := range p.out {
			time.Sleep(o.pause + time.Millisecond)
			if o.hangUp {
				return
			}
			if _, err := line.Write(o.text); err != nil {
				return
			}
		}
	})
	p.mu.Lock()
	p.begin()
	p.mu.Unlock()
	buf := [256]byte{}
	for {
		n, err := line.Read(buf[:])
		if err != nil {
			break
		}
		p.hear(buf[:n])
	}
	close(p.out)
	both.Wait()
}

// begin is the start of a firmware.
func (p *player) begin() {
	p.line, p.turn, p.unit, p.broken = nil, 0, "", false
	p.say(func(r *recorded) string { return string(r.start) })
}

func (p *player) hear(text []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := p.spoil - p.heard; p.spoil >= 0 && i >= 0 && i < len(text) {
		text[i] ^= byte(1) << p.rng.IntN(7)
	}
	p.heard += len(text)
	var echo []byte
	for _, c := range text {
		echo = append(echo, c)
		switch {
		case p.broken:
		case c == '\r' || c == '\n' && p.now.firmware != fixtures.DialectCSR || c == ';' && p.now.firmware == fixtures.DialectReport:
			command, typed := string(p.line), string(echo[:len(echo)-1])
			p.line, echo = nil, nil
			switch p.now.firmware {
			case fixtures.DialectReport:
				p.say(func(r *recorded) string { return r.reported(command) })
			case fixtures.DialectAT:
				p.say(func(r *recorded) string { return typed + r.answered(command) })
			case fixtures.DialectCSR:
				p.answerQuestion(typed, command)
			}
		case len(p.line) < 1024:
			p.line = append(p.line, c)
		}
	}
	if len(echo) > 0 && p.now.firmware != fixtures.DialectReport && !p.broken {
		p.say(func(*recorded) string { return string(echo) })
	}
}

func (r *recorded) answered(command string) string {
	if answer, ok := r.answers[command]; ok {
		return string(answer)
	}
	if strings.HasPrefix(command, "at+netutilcmd=sign_msg,0,") { // over a nonce of another board, or one that arrived with a flaw
		for known, answer := range r.answers {
			if strings.HasPrefix(known, "at+netutilcmd=") && known < command {
				return string(answer)
			}
		}
	}
	if r.unknown != nil {
		return string(r.unknown)
	}
	return strings.Replace(string(r.answers["at+test"]), "OK", "ERROR: command not exist,0", 1)
}

func (r *recorded) reported(command string) string {
	if answer, ok := r.answers[command]; ok {
		return string(answer)
	}
	if strings.HasPrefix(command, "secretfree 1 ") {
		return string(r.answers["secretfree 1 "+r.nonces[0]])
	}
	return ""
}

// answerQuestion is the CSR example when a line is complete.
func (p *player) answerQuestion(typed, answer string) {
	if p.turn >= len(p.now.questions) {
		p.say(func(*recorded) string { return typed })
		return
	}
	turn := p.turn
	q := p.now.questions[turn]
	switch {
	case turn == 0 && answer == "":
		p.broken = true
		p.say(func(*recorded) string {
			return "\r\nERROR: strtok - there is not token \r\nError [-1] at line [612] in function [mainThread]\r\n"
		})
		return
	case turn == p.now.csrUnit() && len(answer) == len(q.answer):
		p.unit = answer
	case answer != q.answer:
		p.say(func(r *recorded) string {
			ask := r.start
			if turn > 0 {
				ask = []byte(r.questions[turn-1].then)
			}
			return typed + "\r\nERROR: Invalid answer\r\nERROR: NetUtilCmd error: -1: \r\n" + string(ask[max(0, bytes.LastIndex(ask, []byte("\r\n\n"))):])
		})
		return
	}
	p.turn++
	unit, last := p.unit, p.turn == len(p.now.questions)
	p.say(func(r *recorded) string {
		if request, ok := r.answers[unit]; ok && last {
			return typed + string(request)
		}
		return typed + r.questions[turn].then
	})
}

// say says what the board that is on the line says, with what the plan has for
// it.
func (p *player) say(what func(r *recorded) string) {
	text := what(p.now)
	for len(p.plan) > 0 && p.plan[0].at < p.said+len(text) && !p.mute {
		m := p.plan[0]
		p.plan = p.plan[1:]
		at := max(0, m.at-p.said)
		head, tail := text[:at], text[at:]
		switch m.kind {
		case "flip":
			text = head + string(tail[0]^1<<m.n) + tail[1:]
			if tail[0]^1<<m.n >= 0x80 { // one byte, not a rune
				text = head + string([]byte{tail[0] ^ 1<<m.n}) + tail[1:]
			}
		case "drop":
			text = head + tail[min(m.n, len(tail)):]
		case "repeat":
			text = head + head[max(0, len(head)-m.n):] + tail
		case "swap":
			text = swapLines(text, at)
		case "event":
			text = head + p.event(m.n) + tail
		case "delay":
			p.put(op{text: []byte(head)})
			p.said += at
			p.pause, text = m.wait, tail
		case "cut":
			text = head
			p.mute = m.n == 0
			if m.n == 1 {
				p.put(op{text: []byte(head)})
				p.put(op{hangUp: true})
				p.mute = true
				return
			}
		case "splice":
			if p.next.firmware != p.now.firmware {
				break
			}
			p.now, p.next, p.drawn = p.next, p.now, 0
			rest := what(p.now)
			text = head + rest[min(at, len(rest)):]
		case "reset":
			p.put(op{text: []byte(head)})
			p.said += at
			p.pause = m.wait
			p.begin()
			return
		}
	}
	p.said += len(text)
	p.put(op{text: []byte(text)})
}

func (p *player) put(o op) {
	if p.mute || len(o.text) == 0 && !o.hangUp {
		return
	}
	o.pause, p.pause = p.pause, 0
	select {
	case p.out <- o:
	default: // a reader that asks and asks, and does not read
	}
}

// event is a line that nobody asked for, as the firmware prints it.
func (p *player) event(n int) string {
	events := map[string][]string{
		fixtures.DialectAT: {"+eventnetapp:ipv4_acquired,192.0.2.7,192.0.2.1,192.0.2.1", "+eventwlan:connect,OK +get:0x1,0xa:0x0:0x1:0x2:0x3:0x4", "+eventgeneral:error,-6,"},
		fixtures.DialectCSR: {"[NETAPP EVENT] IP Acquired: IP=192.0.2.7 , Gateway=192.0.2.1", "[WLAN ERROR] Device disconnected from AP",
			"[GENERAL EVENT] - ID=[6] Sender=[1]"},
		fixtures.DialectReport: {"[123] wlan: secretfree 1 is no answer", "secretfree", "[0] boot: unique device id = 00 01 02"},
	}[p.now.firmware]
	return events[n%len(events)] + p.now.eol
}

// swapLines exchanges the line that has the byte at a place with the next one.
// Line ends stay where they are.
func swapLines(text string, at int) string {
	end := func(s string, from int, in bool) int {
		for i := from; i < len(s); i++ {
			if strings.IndexByte("\r\n", s[i]) >= 0 == in {
				return i
			}
		}
		return len(s)
	}
	start := strings.LastIndexAny(text[:at], "\r\n") + 1
	start = end(text, start, false)
	stop := end(text, start, true)
	second := end(text, stop, false)
	last := end(text, second, true)
	return text[:start] + text[second:last] + text[stop:second] + text[start:stop] + text[last:]
}
