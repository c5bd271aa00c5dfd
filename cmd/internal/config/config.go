// Package config reads configuration files (TOML) strictly: what is unknown,
// wrong or contradictory is an Error that names the file, the line and the
// remedy.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"sort"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// MaxSize of a configuration file, in bytes.
const MaxSize = 1 << 20

// Error is something wrong in a configuration file.
type Error struct {
	File    string
	Line    int // from 1; 0 if it is about the file as a whole
	Problem string
	Remedy  string
}

func (e *Error) Error() string {
	place := e.File
	if e.Line > 0 {
		place = fmt.Sprintf("%s:%d", e.File, e.Line)
	}
	return fmt.Sprintf("%s: %s. %s", place, e.Problem, e.Remedy)
}

// File is a configuration file that was read, for naming lines of it.
type File struct {
	name  string
	lines map[string]int
}

// Load reads the file into a pointer to a struct with toml tags. Keys that the
// struct does not have are errors.
func Load(name string, into any) (*File, error) {
	data, err := read(name)
	if err != nil {
		return nil, err
	}
	return Parse(name, data, into)
}

// Parse is Load of what was read already; the name is the one that errors have.
func Parse(name string, data []byte, into any) (*File, error) {
	if len(data) > MaxSize {
		return nil, &Error{File: name, Problem: fmt.Sprintf("the file is larger than %d bytes", MaxSize), Remedy: "Is this the right file?"}
	}
	file := &File{name: name, lines: lines(data)}
	decoder := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return nil, file.explain(err, reflect.TypeOf(into).Elem())
	}
	return file, nil
}

func read(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	return data, nil
}

// Errorf is an Error at the line of a key: "listen", "registry.kind",
// "slot[1].port" (counted from 0). If the key is not in the file the line is
// that of its table, or none.
func (f *File) Errorf(key, remedy, format string, args ...any) error {
	return &Error{File: f.name, Line: f.line(key), Problem: fmt.Sprintf(format, args...), Remedy: remedy}
}

func (f *File) line(key string) int {
	for {
		if line, ok := f.lines[key]; ok {
			return line
		}
		dot := strings.LastIndexByte(key, '.')
		if dot < 0 {
			return 0
		}
		key = key[:dot]
	}
}

func (f *File) explain(err error, t reflect.Type) error {
	if strict, ok := errors.AsType[*toml.StrictMissingError](err); ok && len(strict.Errors) > 0 {
		unknown := &strict.Errors[0]
		line, _ := unknown.Position()
		key := unknown.Key()
		known := keys(t, key[:len(key)-1])
		table := "at the top level"
		if len(key) > 1 {
			table = fmt.Sprintf("in [%s]", strings.Join(key[:len(key)-1], "."))
		}
		return &Error{File: f.name, Line: line, Problem: fmt.Sprintf("unknown key %q", strings.Join(key, ".")),
			Remedy: fmt.Sprintf("Correct or remove it; known %s: %s.", table, strings.Join(known, ", "))}
	}
	if decode, ok := errors.AsType[*toml.DecodeError](err); ok {
		line, _ := decode.Position()
		if problem, remedy, ok := wrongKind(decode, t); ok {
			return &Error{File: f.name, Line: line, Problem: problem, Remedy: remedy}
		}
		return &Error{File: f.name, Line: line, Problem: strings.TrimPrefix(decode.Error(), "toml: "),
			Remedy: "Correct this line; a text needs quotes, a table is [name], a list of tables [[name]]."}
	}
	return &Error{File: f.name, Problem: strings.TrimPrefix(err.Error(), "toml: "), Remedy: "Correct the file."}
}

var kindNames = map[string]string{"string": "a text", "integer": "a whole number", "float": "a number with a fraction", "boolean": "true or false",
	"array": "a list", "table": "a table", "inline table": "a table", "local date": "a date"}

// wrongKind says of a value of the wrong kind what is there and what belongs
// there. The decoder's own words are of this program's types.
func wrongKind(e *toml.DecodeError, t reflect.Type) (problem, remedy string, ok bool) {
	found := ""
	if _, text, ok := strings.Cut(e.Error(), "cannot decode TOML "); ok {
		kind, _, _ := strings.Cut(text, " into ")
		if found = kindNames[kind]; found == "" {
			found = "something else"
		}
	} else if strings.Contains(e.Error(), "cannot store an array table") {
		found = "a list of tables"
	}
	path := e.Key()
	if found == "" || len(path) == 0 {
		return "", "", false
	}
	for i, name := range path {
		field, there := fieldOf(t, name)
		if !there { // deeper than what takes no table
			path = path[:i]
			break
		}
		t = field
	}
	if len(path) == 0 {
		return "", "", false
	}
	name := path[len(path)-1]
	var want, example string
	switch t.Kind() {
	case reflect.String:
		want, example = "a text", name+` = "…"`
	case reflect.Bool:
		want, example = "true or false", name+" = true"
	case reflect.Int:
		want, example = "a whole number", name+" = 7"
	case reflect.Struct:
		want, example = "a table", "["+strings.Join(path, ".")+"]"
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Struct {
			want, example = "a list of tables", "[["+strings.Join(path, ".")+"]]"
			break
		}
		want, example = "a list of texts", name+` = ["…"]`
		if !strings.Contains(e.Error(), "of type []") {
			return fmt.Sprintf("%s takes %s, and there is %s in it", strings.Join(path, "."), want, found), "Write it as: " + example + ".", true
		}
	default:
		return "", "", false
	}
	return fmt.Sprintf("%s takes %s, and this is %s", strings.Join(path, "."), want, found), "Write it as: " + example + ".", true
}

// fieldOf is the type of what a table of type t holds under a name.
func fieldOf(t reflect.Type, name string) (reflect.Type, bool) {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return nil, false
	}
	for i := range t.NumField() {
		if tag, _, _ := strings.Cut(t.Field(i).Tag.Get("toml"), ","); tag == name {
			return t.Field(i).Type, true
		}
	}
	return nil, false
}

// keys lists what the table at a path of t may hold.
func keys(t reflect.Type, path []string) []string {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return nil
	}
	var names []string
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("toml"), ",")
		if name == "" || name == "-" {
			continue
		}
		if len(path) > 0 && path[0] == name {
			return keys(t.Field(i).Type, path[1:])
		}
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

// lines maps every key of a document to its line. A document that does not
// parse gives what came before.
func lines(data []byte) map[string]int {
	out := map[string]int{}
	count := map[string]int{} // of the elements of a list of tables
	var p unstable.Parser
	p.Reset(data)
	table := ""
	for p.NextExpression() {
		node := p.Expression()
		var parts []string
		line := 0
		for it := node.Key(); it.Next(); {
			part := it.Node()
			if line == 0 {
				line = p.Shape(part.Raw).Start.Line
			}
			parts = append(parts, string(part.Data))
		}
		key := strings.Join(parts, ".")
		switch node.Kind {
		case unstable.Table:
			table = key
			out[table] = line
		case unstable.ArrayTable:
			table = fmt.Sprintf("%s[%d]", key, count[key])
			count[key]++
			out[table] = line
		case unstable.KeyValue:
			if table != "" {
				key = table + "." + key
			}
			if _, ok := out[key]; !ok {
				out[key] = line
			}
		}
	}
	return out
}
