package stationd

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"secretfree/station"
)

const (
	countedName = "lot.json"
	maxCounted  = 16 << 10 // bytes
)

// counted keeps the count of the lot in a file of the state directory. Losing it loses the numbers on the page, and no board.
type counted struct{ path string }

// lots is what stands in the file. A program that does not know of the earlier ones reads the present one.
type lots struct {
	station.Lot
	Earlier []station.Lot `json:"earlier,omitempty"` // the newest first
}

func openCounted(dir string) counted { return counted{filepath.Join(dir, countedName)} }

// load is what was kept last; nil if nothing was. The error says what is wrong with the file.
func (c counted) load() (lot *station.Lot, earlier []station.Lot, err error) {
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
	for _, lot := range append([]station.Lot{kept.Lot}, kept.Earlier...) {
		if lot.Since.IsZero() {
			return nil, nil, fmt.Errorf("%s does not say since when it counts", c.path)
		}
		if err := lot.Check(); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", c.path, err)
		}
	}
	return &kept.Lot, kept.Earlier, nil
}

// keep is station.Config.KeepLot: the file is whole at every moment, and synced when it returns.
func (c counted) keep(lot station.Lot, earlier []station.Lot) error {
	text, err := json.Marshal(lots{lot, earlier})
	if err != nil {
		return err
	}
	beside := c.path + ".new"
	f, err := os.OpenFile(beside, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("keeping the count of the lot: %w", err)
	}
	_, err = f.Write(append(text, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(beside, c.path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(c.path))
	}
	if err != nil {
		return fmt.Errorf("keeping the count of the lot: %w", err)
	}
	return nil
}
