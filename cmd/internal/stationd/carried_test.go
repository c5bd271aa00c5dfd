package stationd

import (
	"strings"
	"testing"

	"secretfree/station"
)

// Where records leave on a stick it is no error that nothing delivers them: not
// on the page, not in the metrics, not in the log.
func TestCarried(t *testing.T) {
	f := newFactory(t)
	f.registry = ""
	d := f.start()
	f.plug(f.ports[0], newBoard())
	d.awaitSlot(0, station.Passed)
	d.await("the spool to have tried", func(station.Status) bool { return d.spool.Stats().LastError != "" })
	if b := d.Status().Backlog; b.Pending != 1 || b.LastError != "" {
		t.Errorf("the backlog is %+v", b)
	}
	if code, body := d.get("/healthz"); code != 200 {
		t.Errorf("/healthz: %d %s", code, body)
	}
	if _, body := d.get("/metrics"); strings.Contains(body, "stationd_spool_delivery_error{") {
		t.Errorf("the metrics have an error:\n%s", body)
	}
	d.stop()
	if strings.Contains(d.log.String(), "does not take records") {
		t.Errorf("the log says:\n%s", d.log)
	}
}
