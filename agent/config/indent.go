package config

import (
	"fmt"
	"slices"
	"strings"
)

// indentMistake says what is wrong with the indentation of line n, or of the one after it, where the
// parser, which stopped at that line, does not say so; empty: nothing that shows.
func indentMistake(src []byte, n int) string {
	lines := strings.Split(string(src), "\n")
	if n < 1 || n > len(lines) {
		return ""
	}
	own, ok := indentOf(lines[n-1])
	if !ok {
		return ""
	}
	open := []int{0} // indentations of the sections around the line
	for _, line := range lines[:n-1] {
		if indent, ok := indentOf(line); ok {
			open = append(slices.DeleteFunc(open, func(o int) bool { return o > indent }), indent)
		}
	}
	if widest := slices.Max(open); own < widest && !slices.Contains(open, own) {
		return fmt.Sprintf("is indented by %d spaces, and no line of the sections around it is: keys of one section begin in the same column", own)
	}
	for _, line := range lines[n:] {
		if indent, ok := indentOf(line); ok && indent > own {
			return "has a value, but the line below is indented further, as if it belonged to it: keys of one section begin in the same column"
		} else if ok {
			break
		}
	}
	return ""
}

// indentOf returns by how many spaces a line is indented; not ok for one that says nothing.
func indentOf(line string) (spaces int, ok bool) {
	text := strings.TrimLeft(line, " ")
	return len(line) - len(text), strings.TrimSpace(text) != "" && text[0] != '#'
}
