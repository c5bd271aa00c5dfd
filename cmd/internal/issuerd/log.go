package issuerd

import (
	"errors"

	"github.com/rs/zerolog"

	"secretfree/cloud/issuer/server"
)

// LogDecision logs a request: at level error if it could not be answered for
// want of something of ours, otherwise at level info.
func LogDecision(log zerolog.Logger, d server.Decision) {
	level := zerolog.InfoLevel
	if _, limited := errors.AsType[server.ErrTooMany](d.Err); d.Outcome == server.TryLater && !limited {
		level = zerolog.ErrorLevel
	}
	line := log.WithLevel(level).Str("id", d.ID).Str("path", d.Path).Str("outcome", string(d.Outcome)).Dur("took_ms", d.Took)
	if d.Device != "" {
		line = line.Str("device", d.Device)
	}
	if d.Refusal != "" {
		line = line.Str("refusal", string(d.Refusal))
	}
	line.AnErr("error", d.Err).Msg("request")
}
