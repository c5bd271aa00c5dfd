package stationd

import (
	"fmt"

	"secretfree/cmd/internal/cli"
	"secretfree/cmd/internal/config"
	"secretfree/spool"
	"secretfree/station"
)

// Disk is the table [disk]: how full the disk may be, in percent, before the
// page says so.
type Disk struct {
	Warn     int `toml:"warn_percent"`
	Critical int `toml:"critical_percent"`
}

func (d Disk) check(f *config.File) error {
	if d.Warn < 1 || d.Warn > 99 {
		return f.Errorf("disk.warn_percent", "Write a number from 1 to 99.", "disk.warn_percent is %d", d.Warn)
	}
	if d.Critical <= d.Warn || d.Critical > 99 {
		return f.Errorf("disk.critical_percent", "Write a number from 2 to 99 that is greater than warn_percent.", "disk.critical_percent is %d, disk.warn_percent %d", d.Critical, d.Warn)
	}
	return nil
}

// notices are what people must know of the disk and of the copies.
func (d *Daemon) notices() []station.Problem {
	stats := d.stats()
	return append(diskNotices(stats.Disk), archiveNotices(stats)...)
}

func diskNotices(d spool.Disk) []station.Problem {
	p := station.Problem{Args: []any{d.Percent(), d.Boards()}, Call: station.CallIT}
	switch d.Level {
	case spool.DiskLow:
		p.Word = "disk-low"
	case spool.DiskCritical:
		p.Word, p.Urgent = "disk-critical", true
	default:
		return nil
	}
	p.Detail = fmt.Sprintf("the disk of this station is %d %% full; %s are left, room for about %d boards. "+
		"The station's own files take %s: it needs a larger disk: the guide for IT says how many years fit on which.",
		d.Percent(), cli.Size(d.Free), d.Boards(), cli.Size(d.Used))
	return []station.Problem{p}
}
