package issuerd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"secretfree/cloud/issuer"
	"secretfree/cmd/internal/config"
	"secretfree/station/board"
)

// Parse is Load of a text that is in no file; the name is the one that errors
// have.
func Parse(name string, text []byte) (Config, error) {
	c := defaults()
	file, err := config.Parse(name, text, &c)
	if err != nil {
		return Config{}, err
	}
	return c.filled(file)
}

// Decider decides on requests and can issue nothing: it knows neither a CA nor
// what was issued. Any number of callers may use it at once.
type Decider struct {
	registry issuer.Registry
	policy   issuer.Policy
}

// OpenDecider makes the Decider of a configuration that came from Load or
// Parse. It calls nothing outside this machine, but for a key of the challenges
// in KMS.
func (c Config) OpenDecider(ctx context.Context) (*Decider, error) {
	challenges, err := c.Challenge.open(ctx, c.SKU)
	if err != nil {
		return nil, err
	}
	policy, err := c.IssuerPolicy(challenges)
	if err != nil {
		return nil, err
	}
	aws, dir, err := c.Registry.Open(ctx, c.SKU)
	if err != nil {
		return nil, fmt.Errorf("opening the registry: %w", err)
	}
	if dir != nil {
		return &Decider{dir, policy}, nil
	}
	return &Decider{aws, policy}, nil
}

// Decide is issuer.Decide on what the registry holds now. An error that wraps
// an issuer.Refusal is a verdict; any other says that the registry could not be
// read.
func (d *Decider) Decide(ctx context.Context, request issuer.Request) (issuer.Approved, error) {
	var enrolment *board.Enrolment
	if device, ok := request.Claimed(); ok {
		found, err := d.registry.Lookup(ctx, device)
		switch {
		case err == nil:
			enrolment = &found
		case !errors.Is(err, board.ErrNotEnrolled):
			return issuer.Approved{}, fmt.Errorf("looking up device %s: %w", device, err)
		}
	}
	return issuer.Decide(request, enrolment, d.policy, time.Now())
}
