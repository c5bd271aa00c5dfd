package cmd_test

import (
	"errors"
	"strings"
)

// simple is one simple command of a shell's text: its words, without
// redirections, and the line that it begins in, from 0.
type simple struct {
	line  int
	words []string
}

var errQuote = errors.New("a quote is not closed")

// splitShell finds the simple commands of a text for the shell, as far as
// documents use it: quotes, comments, pipes, lists, line ends that are escaped,
// redirections, here documents. A command substitution is a word.
func splitShell(text string) (all []simple, err error) {
	s := &shellText{text: text}
	for s.at < len(s.text) {
		if err := s.next(); err != nil {
			return s.all, err
		}
	}
	s.endWord()
	s.endCommand()
	return s.all, nil
}

type shellText struct {
	text     string
	at, line int
	word     strings.Builder
	inWord   bool
	skip     bool // the word that is being read is the target of a redirection
	here     string
	command  simple
	all      []simple
}

func (s *shellText) next() error {
	rest := s.text[s.at:]
	switch c := rest[0]; {
	case strings.HasPrefix(rest, "\\\n"):
		s.at, s.line = s.at+2, s.line+1
	case c == '\\' && len(rest) > 1:
		s.add(rest[1:2])
		s.at += 2
	case c == '\'' || c == '"':
		end := strings.IndexByte(rest[1:], c)
		if end < 0 {
			return errQuote
		}
		s.add(rest[1 : 1+end])
		s.at += end + 2
	case strings.HasPrefix(rest, "$("):
		end := strings.IndexByte(rest, ')')
		if end < 0 {
			return errQuote
		}
		s.add(rest[:end+1])
		s.at += end + 1
	case c == '#' && !s.inWord:
		s.at += len(rest)
		if end := strings.IndexByte(rest, '\n'); end >= 0 {
			s.at -= len(rest) - end
		}
	case c == '\n':
		s.endWord()
		s.endCommand()
		s.at++
		s.line++
		s.endHere()
	case strings.IndexByte("|;&", c) >= 0 && !strings.HasPrefix(rest, "&>") && (s.at == 0 || s.text[s.at-1] != '>'):
		s.endWord()
		s.endCommand()
		s.at++
	case strings.HasPrefix(rest, "<<"):
		s.endWord()
		s.at += 2
		s.here, _, _ = strings.Cut(s.text[s.at:], "\n")
		s.skip = true
	case c == '>' || c == '<' && s.at+1 < len(s.text):
		if strings.Trim(s.word.String(), "12&") == "" {
			s.word.Reset()
			s.inWord = false
		}
		s.endWord()
		s.at++
		s.skip = true
	case c == ' ' || c == '\t':
		if s.inWord {
			s.endWord()
		}
		s.at++
	default:
		s.add(rest[:1])
		s.at++
	}
	return nil
}

func (s *shellText) add(text string) {
	s.word.WriteString(text)
	s.inWord = true
}

func (s *shellText) endWord() {
	if s.inWord && !s.skip {
		if len(s.command.words) == 0 {
			s.command.line = s.line
		}
		s.command.words = append(s.command.words, s.word.String())
	}
	if s.inWord {
		s.skip = false
	}
	s.word.Reset()
	s.inWord = false
}

func (s *shellText) endCommand() {
	if len(s.command.words) > 0 {
		s.all = append(s.all, s.command)
	}
	s.command, s.skip = simple{}, false
}

// endHere leaves out the text of a here document.
func (s *shellText) endHere() {
	if s.here == "" {
		return
	}
	mark := strings.Trim(s.here, " '\"")
	for line := range strings.Lines(s.text[s.at:]) {
		s.at += len(line)
		s.line++
		if strings.TrimSpace(line) == mark {
			break
		}
	}
	s.here = ""
}
