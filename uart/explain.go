package uart

// Explain makes dialects report how they understand what the board says: a
// piece of the text, and its meaning in a few words ("serial number", "event,
// skipped"). A piece can be reported more than once. explain is called by the
// goroutine that reads; nil ends the reports.
func (l *Line) Explain(explain func(text, meaning string)) { l.explain = explain }

// means reports the meaning of a piece of text.
func (l *Line) means(text, meaning string) {
	if l.explain != nil && text != "" {
		l.explain(text, meaning)
	}
}

// Consumed is the number of bytes since the last Mark that a dialect has used:
// what the recording has, without what still waits on the line.
func (l *Line) Consumed() int { return max(0, len(l.heard())-len(l.in)) }
