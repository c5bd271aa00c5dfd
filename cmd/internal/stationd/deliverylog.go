package stationd

import (
	"time"

	"github.com/rs/zerolog"

	"secretfree/spool"
)

// deliveryLogger logs what changes in the delivery.
type deliveryLogger struct {
	log              zerolog.Logger
	registry, copies sentence
	last             spool.Stats
}

func (c *deliveryLogger) report(stats spool.Stats) {
	if c.registry.changes(stats.LastError) {
		if stats.LastError == "" {
			c.log.Info().Int("pending", stats.Pending).Msg("the registry takes records again")
		} else {
			c.log.Warn().Int("pending", stats.Pending).Str("error", stats.LastError).Msg("the registry does not take records; they wait on disk")
		}
	}
	if c.copies.changes(stats.ArchiveError) {
		if stats.ArchiveError == "" {
			c.log.Info().Int("unarchived", stats.Unarchived).Msg("the registry takes copies of the journal again")
		} else {
			c.log.Warn().Int("unarchived", stats.Unarchived).Str("error", stats.ArchiveError).Msg("the registry takes no copies of the journal; only this disk has it")
		}
	}
	if stats.Dead > c.last.Dead {
		c.log.Error().Int("dead", stats.Dead).Msg("the registry refused a record for good; see: stationctl spool dead")
	}
	if stats.Broken != "" && c.last.Broken == "" {
		c.log.Error().Str("error", stats.Broken).Msg("the disk is not trusted; the next board tries it anew")
	}
	if stats.Disk.Level != c.last.Disk.Level {
		for _, n := range diskNotices(stats.Disk) {
			c.log.Warn().Msg(n.Detail)
		}
	}
	c.last = stats
}

// sentence is an error that is told when it comes and when it goes, and while
// it is another each time, once a minute.
type sentence struct {
	told string
	at   time.Time
}

func (s *sentence) changes(now string) bool {
	if now == s.told || now != "" && s.told != "" && time.Since(s.at) <= time.Minute {
		return false
	}
	s.told, s.at = now, time.Now()
	return true
}
