package config

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// Names are checked without expressions, whose bounds would take milliseconds
// of every start.
const (
	digits = "0123456789"
	lower  = "abcdefghijklmnopqrstuvwxyz" + digits
	upper  = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
)

// isOf reports whether text is of the characters of a set, and least to most
// bytes long.
func isOf(text, set string, least, most int) bool {
	return len(text) >= least && len(text) <= most && strings.Trim(text, set) == ""
}

// isBetween reports whether text neither begins nor ends with one of the
// characters of ends.
func isBetween(text, ends string) bool { return strings.Trim(text, ends) == text }

// isLabel is true with the underscore that people use.
func isLabel(text string) bool { return isOf(text, lower+"_-", 1, 63) && isBetween(text, "-") }

// isRegion is true for private ones too, which have names of their own.
func isRegion(text string) bool {
	for part := range strings.SplitSeq(text, "-") {
		if !isOf(part, lower, 1, len(text)) {
			return false
		}
	}
	return true
}

func isTable(text string) bool { return isOf(text, lower+upper+"_.-", 3, 255) }

func isBucket(text string) bool { return isOf(text, lower+".-", 3, 63) && isBetween(text, ".-") }

// isHost tells whether something is an address, or may be the name of a
// machine.
func isHost(host string) bool {
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	labels := strings.Split(strings.ToLower(strings.TrimSuffix(host, ".")), ".")
	for _, label := range labels {
		if !isLabel(label) {
			return false
		}
	}
	// Only an address ends in a number, and this is none.
	return len(host) <= 253 && !isOf(labels[len(labels)-1], digits, 1, len(host))
}

func isPort(port string) bool {
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && strconv.FormatUint(n, 10) == port
}

// CheckListen refuses what no server can listen on: want an address or a name,
// or nothing for all addresses, and a port as a number.
func CheckListen(f *File, key, value, example string) error {
	host, port, err := net.SplitHostPort(value)
	if err != nil || !isPort(port) || host != "" && !isHost(host) {
		return f.Errorf(key, fmt.Sprintf("Write an address and a port up to 65535, such as %q; 0.0.0.0 is every address of this machine.", example), "%s is %q", key, value)
	}
	return nil
}

// CheckHosts refuses what is not the name of a machine alone.
func CheckHosts(f *File, key string, hosts []string) error {
	for _, host := range hosts {
		if !isHost(host) {
			return f.Errorf(key, `Write names alone, without http:// and without a port, such as "line3-a.factory.example".`, "%s has %q", key, host)
		}
	}
	return nil
}

// checkEndpoint refuses what is no base address of a web service; empty is
// none.
func checkEndpoint(f *File, key, value string) error {
	if value == "" {
		return nil
	}
	u, err := url.Parse(value)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || !isHost(u.Hostname()) || u.Port() != "" && !isPort(u.Port()) || strings.HasSuffix(u.Host, ":") ||
		u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Path != "" && u.Path != "/" {
		return f.Errorf(key, `Write http:// or https:// with a host, and a port if it is not the usual one, such as "http://localhost:8000".`, "%s is %q", key, value)
	}
	return nil
}

// CheckDynamoDB refuses a table, a region or an endpoint that cannot be one;
// what is empty is not looked at. prefix is the table of the configuration that
// they are in.
func CheckDynamoDB(f *File, prefix, table, region, endpoint string) error {
	if table != "" && !isTable(table) {
		return f.Errorf(prefix+".table", "Write the name of the table: 3 to 255 of letters, digits, _, . and -.", "%s.table is %q", prefix, table)
	}
	if region != "" && !isRegion(region) {
		return f.Errorf(prefix+".region", `Write the name of the region as AWS has it, such as "us-east-1".`, "%s.region is %q", prefix, region)
	}
	return checkEndpoint(f, prefix+".dynamodb_endpoint", endpoint)
}
