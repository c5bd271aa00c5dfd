package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"secretfree/cloud"
	"secretfree/spool/reconcile"
	"secretfree/station/board"
)

// remedies says of each difference who can mend it, and how. A station may only
// add to a registry; what is there and wrong is for its administrator, once a
// person knows which side is right.
type remedies struct {
	cloud.Location        // of a registry in AWS
	dir            string // of a folder; otherwise empty
	again          string // the command that repairs
}

const (
	administrator = "administrator of the registry"
	quality       = "quality"
)

// of returns the remedy, and whether it is this command with --repair.
func (r remedies) of(d reconcile.Difference) (text string, repair bool) {
	switch d.Kind {
	case reconcile.DiffMissing:
		if _, conflict := errors.AsType[*board.Conflict](d.Err); conflict {
			return quality + ": find out which of the two boards has this key; then the administrator does what the line of its guard says, and: " + r.again, false
		}
		return "this command: " + r.again, true
	case reconcile.DiffObject:
		if d.Missing {
			return "this command: " + r.again, true
		}
		rule := ""
		if r.dir == "" {
			rule = ", take the rule NoDeletes out of the bucket's policy meanwhile if it has one"
		}
		return fmt.Sprintf("%s: find out who exchanged it%s, then: %s && %s", administrator, rule, r.removeObject(d), r.again), false
	case reconcile.DiffGuard:
		switch {
		case d.Missing:
			return "this command: " + r.again, true
		case d.Entry:
			return fmt.Sprintf("%s: find out which device has this key; if it is this one, the %s: %s && %s", quality, administrator, r.removeItem("key:"+d.Key.String()), r.again), false
		}
		return fmt.Sprintf("%s: no other device can be enrolled with this key; if nobody knows why: %s", administrator, r.removeItem("key:"+d.Key.String())), false
	case reconcile.DiffItem:
		if wrong, ok := errors.AsType[*cloud.Mismatch](d.Err); ok && wrong.Want != "" {
			return fmt.Sprintf("%s: find out who changed it, then: %s", administrator, r.setAttribute(wrong)), false
		}
		return r.anew(d, "find out who changed it, and note its state"), false
	case reconcile.DiffUnsigned:
		return administrator + ": sign what the loader of the reference wrote, or delete it: issuerctl import --help", false
	case reconcile.DiffKey:
		return r.anew(d, "find out which of the two keys the board has; if it is that of the journal"), false
	case reconcile.DiffEnvelope:
		return r.anew(d, "another machine signs as this station, or somebody forged it: find out who; if the journal is right"), false
	case reconcile.DiffUnknown:
		return fmt.Sprintf("%s: the journal may be an old copy (stationctl doctor), or somebody forged the item; if nobody has read this board, the %s: %s", quality, administrator, r.removeItem(d.Device.String())), false
	case reconcile.DiffDamaged:
		if d.Device.Valid() {
			return r.anew(d, "find out who changed it, and note its state"), false
		}
		return administrator + ": find out who wrote it, and remove it", false
	}
	return "", false
}

// anew deletes an item, so that it is enrolled from the journal.
func (r remedies) anew(d reconcile.Difference, first string) string {
	return fmt.Sprintf("%s: %s, the %s: %s && %s", quality, first, administrator, r.removeItem(d.Device.String()), r.again)
}

func (r remedies) removeItem(id string) string {
	if r.dir != "" {
		return "rm " + quoted(r.file(id))
	}
	return fmt.Sprintf(`aws dynamodb delete-item%s --table-name %s --key '{"device-id":{"S":"%s"}}'`, r.where(r.DynamoDBEndpoint), quoted(r.Table), id)
}

func (r remedies) removeObject(d reconcile.Difference) string {
	name := cloud.ObjectName(board.KeyBinding{Device: d.Device, Key: d.Key})
	if r.dir != "" {
		return "rm " + quoted(filepath.Join(r.dir, name))
	}
	return fmt.Sprintf("aws s3api delete-object%s --bucket %s --key %s", r.where(r.S3Endpoint), quoted(r.Bucket), name)
}

func (r remedies) setAttribute(m *cloud.Mismatch) string {
	kind, value := "S", m.Want
	if m.Attribute == "generation" {
		kind = "N"
	}
	if r.dir != "" {
		return fmt.Sprintf("correct %s to %q in %s", m.Attribute, value, r.file(m.Device.String()))
	}
	return fmt.Sprintf(`aws dynamodb update-item%s --table-name %s --key '{"device-id":{"S":"%s"}}' --update-expression 'SET #a = :v' --expression-attribute-names '{"#a":"%s"}' --expression-attribute-values '{":v":{"%s":"%s"}}'`,
		r.where(r.DynamoDBEndpoint), quoted(r.Table), m.Device, m.Attribute, kind, strings.ReplaceAll(value, "\n", `\n`))
}

func (r remedies) file(id string) string {
	if key, ok := strings.CutPrefix(id, "key:"); ok {
		return filepath.Join(r.dir, "guards", key+".json")
	}
	return filepath.Join(r.dir, "items", id+".json")
}

func (r remedies) where(endpoint string) string {
	text := " --region " + quoted(r.Region)
	if endpoint != "" {
		text += " --endpoint-url " + quoted(endpoint)
	}
	return text
}

// quoted is a word for a shell.
func quoted(word string) string {
	if word != "" && !strings.ContainsFunc(word, func(r rune) bool {
		return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:@", r)
	}) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// again is this command with --repair.
func (r *reconcileCommand) again() string {
	command := "stationctl reconcile --repair"
	for _, option := range []struct{ name, value, usual string }{
		{"--config", r.Config, "/etc/secretfree/stationd.toml"}, {"--state-dir", r.StateDir, ""}, {"--key", r.Key, ""},
	} {
		if option.value != option.usual {
			command += " " + option.name + " " + quoted(option.value)
		}
	}
	return command
}
