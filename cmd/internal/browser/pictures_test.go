package browser_test

import (
	"bytes"
	"flag"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"os"
	"path/filepath"
	"testing"

	"secretfree/station"
)

var updatePictures = flag.Bool("update-pictures", false, "make the pictures of the technician's card anew")

const (
	pictures   = "../../../station/pictures"
	maxPicture = 60 << 10 // bytes
)

// The technician's card shows what a technician sees: one slot in each state
// that the card explains.
func TestPictures(t *testing.T) {
	names := []string{"insert", "reading", "pass", "fail", "banner", "lost"}
	if !*updatePictures {
		for _, name := range names {
			content, err := os.ReadFile(filepath.Join(pictures, name+".png"))
			if err != nil || len(content) > maxPicture {
				t.Errorf("%s: %d bytes, at most %d: %v; make them with -update-pictures", name, len(content), maxPicture, err)
				continue
			}
			if _, err := png.Decode(bytes.NewReader(content)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		return
	}
	w := words(t, "en")
	s := newShow(t, 2, station.Page{ContactIT: "ext. 4711"})
	b := open(t, screen{1024, 640, false})
	s.play(status(w, []map[string]any{slot("A", "empty", w["empty"], nil), slot("B", "empty", w["empty"], nil)}))
	s.visit(b, "")
	take := func(name string, slotB map[string]any, more map[string]any) {
		played := status(w, []map[string]any{slot("A", "empty", w["empty"], nil), slotB})
		played["lot"] = map[string]any{"name": "WO-4711", "planned": 500, "passed": 123, "failed": 2, "repeated": 0, "since": "2026-03-02T06:00:00Z"}
		for key, value := range more {
			played[key] = value
		}
		s.play(played)
		b.is("B", slotB["state"].(string), slotB["advice"].(string))
		if more != nil {
			b.await("the message", "document.querySelectorAll('.notice').length > 0")
		}
		b.write(filepath.Join(pictures, name+".png"), few(t, b.picture()))
	}
	take("insert", slot("B", "empty", w["empty"], nil), nil)
	take("reading", slot("B", "reading", w["reading"], nil), nil)
	passed := slot("B", "passed", w["passed"], map[string]any{"device": device, "confirmed": true})
	take("pass", passed, nil)
	take("fail", slot("B", "failed", w["garbled"], map[string]any{"reason": "garbled"}), nil)
	take("banner", passed, map[string]any{"notices": []map[string]any{{"urgent": true, "word": "health-clock", "text": w["health-clock"] + " IT: ext. 4711", "detail": "the clock is wrong", "call": "it"}}})
	b.eval("document.documentElement.className = 'js unsure'")
	b.write(filepath.Join(pictures, "lost.png"), few(t, b.picture()))
}

// few makes a picture of at most 64 colours: the page has few, and the file is
// small.
func few(t *testing.T, content []byte) []byte {
	t.Helper()
	from, err := png.Decode(bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	count := map[color.RGBA]int{}
	for y := from.Bounds().Min.Y; y < from.Bounds().Max.Y; y++ {
		for x := from.Bounds().Min.X; x < from.Bounds().Max.X; x++ {
			count[color.RGBAModel.Convert(from.At(x, y)).(color.RGBA)]++
		}
	}
	palette := color.Palette{}
	for len(palette) < 64 && len(count) > 0 {
		var best color.RGBA
		for c, n := range count {
			if m := count[best]; n > m || n == m && (c.R < best.R || c.R == best.R && (c.G < best.G || c.G == best.G && c.B < best.B)) {
				best = c
			}
		}
		palette = append(palette, best)
		delete(count, best)
	}
	to := image.NewPaletted(from.Bounds(), palette)
	draw.Draw(to, to.Bounds(), from, from.Bounds().Min, draw.Src)
	var b bytes.Buffer
	if err := (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&b, to); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
