package stationd

import (
	"fmt"

	"secretfree/cmd/internal/cli"
	"secretfree/spool"
	"secretfree/station"
)

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
