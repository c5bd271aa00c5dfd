package config

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
)

var (
	hostLabel  = regexp.MustCompile(`^[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?$`) // with the underscore that people use
	allDigits  = regexp.MustCompile(`^[0-9]+$`)
	regionName = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`) // private ones have names of their own
	tableName  = regexp.MustCompile(`^[A-Za-z0-9_.-]+$`)        // of 3 to 255; as a part of the expression, that would take 4 ms of every start
	bucketName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)
)

// isHost tells whether something is an address, or may be the name of a machine.
func isHost(host string) bool {
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	labels := strings.Split(strings.ToLower(strings.TrimSuffix(host, ".")), ".")
	for _, label := range labels {
		if !hostLabel.MatchString(label) {
			return false
		}
	}
	// Only an address ends in a number, and this is none.
	return len(host) <= 253 && !allDigits.MatchString(labels[len(labels)-1])
}

func isPort(port string) bool {
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && strconv.FormatUint(n, 10) == port
}

// CheckListen refuses what no server can listen on: want an address or a name, or nothing for all addresses, and a port as a number.
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

// checkEndpoint refuses what is no base address of a web service; empty is none.
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

// CheckDynamoDB refuses a table, a region or an endpoint that cannot be one; what is empty is not looked at. prefix is the table of the
// configuration that they are in.
func CheckDynamoDB(f *File, prefix, table, region, endpoint string) error {
	if table != "" && (!tableName.MatchString(table) || len(table) < 3 || len(table) > 255) {
		return f.Errorf(prefix+".table", "Write the name of the table: 3 to 255 of letters, digits, _, . and -.", "%s.table is %q", prefix, table)
	}
	if region != "" && !regionName.MatchString(region) {
		return f.Errorf(prefix+".region", `Write the name of the region as AWS has it, such as "us-east-1".`, "%s.region is %q", prefix, region)
	}
	return checkEndpoint(f, prefix+".dynamodb_endpoint", endpoint)
}
