package stationd

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"secretfree/spool/durable"
	"secretfree/station"
)

const (
	countedName = "work-order.json"
	maxCounted  = 16 << 10 // bytes
)

// workOrders keeps what is being made, in a file of the state directory. How
// many boards there are of it, the journal tells. Losing the file loses the
// name on the page, and no board.
type workOrders struct{ path string }

// order is a lot without its count.
type order struct {
	Name    string    `json:"name"`
	Planned int       `json:"planned"`
	Since   time.Time `json:"since"`
}

func (o order) lot() station.Lot {
	return station.Lot{Name: o.Name, Planned: o.Planned, Since: o.Since}
}

func orderOf(l station.Lot) order { return order{l.Name, l.Planned, l.Since} }

// lots is what stands in the file.
type lots struct {
	order
	Earlier []order `json:"earlier,omitempty"` // the newest first
}

func openWorkOrders(dir string) workOrders { return workOrders{filepath.Join(dir, countedName)} }

// load is what was kept last; nil if nothing was. The error says what is wrong
// with the file.
func (c workOrders) load() (lot *station.Lot, earlier []station.Lot, err error) {
	f, err := os.Open(c.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxCounted+1))
	if err != nil {
		return nil, nil, err
	}
	if len(text) > maxCounted {
		return nil, nil, fmt.Errorf("%s is larger than %d bytes", c.path, maxCounted)
	}
	var kept lots
	if err := json.Unmarshal(text, &kept); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", c.path, err)
	}
	var read []station.Lot
	for _, o := range append([]order{kept.order}, kept.Earlier...) {
		lot := o.lot()
		if lot.Since.IsZero() {
			return nil, nil, fmt.Errorf("%s does not say since when it counts", c.path)
		}
		if err := lot.Check(); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", c.path, err)
		}
		read = append(read, lot)
	}
	return &read[0], read[1:], nil
}

// keep is station.Config.KeepLot: the file is whole at every moment, and synced
// when it returns.
func (c workOrders) keep(lot station.Lot, earlier []station.Lot) error {
	kept := lots{order: orderOf(lot)}
	for _, l := range earlier {
		kept.Earlier = append(kept.Earlier, orderOf(l))
	}
	text, err := json.Marshal(kept)
	if err != nil {
		return err
	}
	if err := durable.WriteFile(durable.OS{}, c.path, append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("keeping the work order: %w", err)
	}
	return nil
}
