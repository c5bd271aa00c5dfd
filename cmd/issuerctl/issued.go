package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"secretfree/cloud"
	"secretfree/cloud/issuer"
	"secretfree/cloud/issuer/ca"
	"secretfree/cmd/internal/cli"
	"secretfree/cmd/internal/issuerd"
	"secretfree/station/board"
)

// withIssuer opens the issuer of a configuration for a moment, without any key.
func withIssuer(ctx context.Context, c issuerd.Config, do func(*issuerd.Components) error) error {
	o, err := c.OpenOperator(ctx)
	if err != nil {
		return err
	}
	return errors.Join(do(o), o.Close())
}

// onIssued joins changes of a device's state with its certificates.
func onIssued() hooks {
	return hooks{
		nextEpoch: func(ctx context.Context, c issuerd.Config, device board.DeviceID) (epoch int, err error) {
			err = withIssuer(ctx, c, func(o *issuerd.Components) error {
				epoch, err = o.NextEpoch(ctx, device)
				return err
			})
			return epoch, err
		},
		afterChange: func(ctx context.Context, c issuerd.Config, e board.Enrolment, action cloud.Action) error {
			reason, revokes := map[cloud.Action]issuer.Reason{
				cloud.Revoke: issuer.KeyCompromise, cloud.Scrap: issuer.CessationOfOperation, cloud.Transfer: issuer.AffiliationChanged,
			}[action]
			if !revokes {
				return nil
			}
			before := 0 // all
			if e.State == board.Active {
				if before = e.Epoch; before == 0 {
					return nil
				}
				// What the device got since, in its own epoch, stays: an old
				// change may be made again.
			}
			return withIssuer(ctx, c, func(o *issuerd.Components) error {
				_, err := o.Revoke(ctx, e.Device, before, reason)
				return err
			})
		},
	}
}

type sweep struct {
	Config  string        `name:"config" default:"/etc/secretfree/issuerd.toml" placeholder:"FILE" help:"The issuer's configuration (${default})."`
	Apply   bool          `name:"apply" help:"Complete or revoke what is found. Without this flag the command only lists it."`
	Stuck   time.Duration `name:"stuck" default:"10m" help:"Age after which an unfinished issuance counts as interrupted (${default})."`
	Unknown bool          `name:"unknown" help:"Also revoke certificates of devices that the registry does not have. First make sure that the configuration names the right registry."`
	Overlap time.Duration `name:"overlap" placeholder:"TIME" help:"How long a certificate stays active after its renewal, instead of renewal.overlap in the configuration."`
}

// findingLine is something that is not as it should stay.
type findingLine struct {
	Device string               `json:"device"`
	Epoch  int                  `json:"epoch"`
	State  issuer.IssuanceState `json:"state"`
	Action issuer.SweepAction   `json:"action"`
	Why    string               `json:"why"`
	Done   bool                 `json:"done"`
	Error  string               `json:"error,omitempty"`
}

func (s *sweep) Run(ctx context.Context, out *cli.Output) error {
	if s.Stuck <= 0 || s.Overlap < 0 {
		return fmt.Errorf("%w: --stuck and --overlap are times from now", cli.ErrMisuse)
	}
	c, err := issuerd.Load(s.Config)
	if err != nil {
		return err
	}
	return withIssuer(ctx, c, func(o *issuerd.Components) error {
		var failed error
		found, unknown := 0, 0
		print := func(line findingLine) {
			found++
			text := fmt.Sprintf("%-8s %s epoch %d (%s): %s\n", line.Action, line.Device, line.Epoch, line.State, line.Why)
			if line.Error != "" {
				text = strings.TrimSuffix(text, "\n") + ": NOT DONE: " + line.Error + "\n"
			}
			failed = errors.Join(failed, out.Print(line, text))
		}
		err := o.Sweep(ctx, issuer.SweepOptions{Apply: s.Apply, Stuck: s.Stuck, Overlap: s.Overlap, Unknown: s.Unknown}, func(f issuer.Finding) {
			line := findingLine{
				Device: f.Issuance.Claim.Device.String(), Epoch: f.Issuance.Claim.Epoch, State: f.Issuance.State, Action: f.Action, Why: f.Why,
				Done: s.Apply && f.Err == nil && f.Action != issuer.Wait,
			}
			if f.Err != nil {
				line.Error = f.Err.Error()
			}
			if f.Unknown {
				unknown++
			}
			print(line)
		})
		if unknown > 0 {
			err = errors.Join(err, fmt.Errorf("the registry does not know %s", cli.Count(unknown, "device that has a certificate", "devices that have certificates")))
		}
		for name, authority := range o.CAs {
			iot, ok := authority.(*ca.IoTCore)
			if !ok {
				continue
			}
			orphans, sweepErr := iot.Sweep(ctx, o.Claims, time.Hour, !s.Apply)
			for _, orphan := range orphans {
				line := findingLine{
					Device: orphan.Device.String(), Action: "delete", Done: s.Apply && orphan.Err == nil,
					Why: fmt.Sprintf("the CA %s has an inactive certificate %s that no claim knows", name, orphan.CertificateID),
				}
				if orphan.Err != nil {
					line.Error = orphan.Err.Error()
				}
				print(line)
			}
			err = errors.Join(err, sweepErr)
		}
		if err = errors.Join(err, failed); err != nil {
			return err
		}
		switch {
		case found == 0:
			fmt.Fprintln(out.People, "Nothing is half-made, and nothing is active that should not be.")
		case !s.Apply:
			fmt.Fprintf(out.People, "%s. Nothing was changed; --apply settles them.\n", cli.Count(found, "finding", "findings"))
		}
		return nil
	})
}

// issuanceLine is a certificate that a device has had, or is about to get.
type issuanceLine struct {
	Epoch      int                  `json:"epoch"`
	Generation int                  `json:"generation"`
	State      issuer.IssuanceState `json:"state"`
	CA         string               `json:"ca"`
	Serial     string               `json:"serial"`
	NotAfter   time.Time            `json:"not_after"`
	Reason     string               `json:"reason,omitempty"`
}

// explainDevice tells what is known of a device without a request.
func explainDevice(ctx context.Context, out *cli.Output, o *issuerd.Components, device board.DeviceID) error {
	verdicts, had, err := o.ExplainDevice(ctx, device)
	if verdicts == nil {
		return err
	}
	for _, i := range had {
		line := issuanceLine{
			Epoch: i.Claim.Epoch, Generation: i.Claim.Generation, State: i.State, CA: i.Claim.CA, Serial: i.Claim.Serial.String(), NotAfter: i.Claim.NotAfter,
		}
		if !i.Revoked.IsZero() {
			line.Reason = i.Reason.String()
		}
		text := fmt.Sprintf("%-12s epoch %d, by the CA %s, until %s %s\n", i.State, line.Epoch, line.CA, line.NotAfter.Format(time.DateOnly), line.Reason)
		if err := out.Print(line, text); err != nil {
			return err
		}
	}
	return show(out, verdicts, err)
}
