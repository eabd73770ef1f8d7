package agent_test

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"secretagent/agent/command/help/helptest"
)

var update = flag.Bool("update", false, "write the list of metrics into the help topic metrics")

// metric is what a call in the source says of a metric.
type metric struct {
	name, help string
	labels     []string
}

// TestTheTopicMetricsHasEveryMetric reads every call of the source that makes a metric, whatever
// has to happen before it is seen, and holds the list of "secretagent help metrics" against them.
func TestTheTopicMetricsHasEveryMetric(t *testing.T) {
	all := map[string]metric{}
	files, err := filepath.Glob("*.go")
	must(t, err)
	for _, file := range files {
		if !strings.HasSuffix(file, "_test.go") {
			parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
			must(t, err)
			metricsOf(t, parsed, all)
		}
	}
	if len(all) < 100 {
		t.Errorf("only %d metrics were found", len(all))
	}
	var names []string
	for name := range all {
		names = append(names, name)
	}
	slices.Sort(names)
	list, part := "", ""
	for _, name := range names {
		m := all[name]
		short := strings.TrimPrefix(name, "secretagent_")
		if first, _, _ := strings.Cut(short, "_"); first != part {
			part = first
			list += "\n"
		}
		labels := ""
		if len(m.labels) > 0 {
			labels = " by `" + strings.Join(m.labels, "`, `") + "`"
		}
		list += fmt.Sprintf("- `%s`%s: %s\n", name, labels, m.help)
	}
	helptest.Hold(t, "metrics", "metrics", list, *update)
}

// metricsOf adds the metrics of a file.
func metricsOf(t *testing.T, file *ast.File, all map[string]metric) {
	words := map[string]string{} // :: name of a constant → its text
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.ValueSpec:
			for i, name := range n.Names {
				if i < len(n.Values) {
					words[name.Name] = text(n.Values[i], words)
				}
			}
		case *ast.CallExpr:
			if m, ok := metricOf(n, words); ok {
				if m.help == "" {
					t.Errorf("%s: its help is no constant", m.name)
				}
				all[m.name] = m
			}
		case *ast.CompositeLit: // prometheus.GaugeOpts{Name: …, Help: …, ConstLabels: {…}}
			var m metric
			for _, e := range n.Elts {
				kv, ok := e.(*ast.KeyValueExpr)
				if !ok {
					continue
				}
				switch key, _ := kv.Key.(*ast.Ident); {
				case key == nil:
				case key.Name == "Name":
					m.name = text(kv.Value, words)
				case key.Name == "Help":
					m.help = text(kv.Value, words)
				case key.Name == "ConstLabels":
					for _, e := range kv.Value.(*ast.CompositeLit).Elts {
						m.labels = append(m.labels, text(e.(*ast.KeyValueExpr).Key, words))
					}
				}
			}
			if strings.HasPrefix(m.name, "secretagent_") {
				all[m.name] = m
			}
		}
		return true
	})
}

// metricOf reads a call such as s.gauge(name, help, value, label, value, …), s.counters(name, help,
// label, values) or counter(name, help, labels…).
func metricOf(call *ast.CallExpr, words map[string]string) (m metric, ok bool) {
	kind := ""
	switch fun := call.Fun.(type) {
	case *ast.SelectorExpr:
		kind = "s." + fun.Sel.Name
	case *ast.Ident:
		kind = fun.Name
	}
	first, step := map[string]int{"s.gauge": 3, "s.counter": 3, "s.moment": 3, "s.counters": 2, "counter": 2, "histogram": 3}[kind], 1
	if first == 0 || len(call.Args) < 3 && kind != "counter" {
		return m, false
	}
	if m.name = text(call.Args[0], words); !strings.HasPrefix(m.name, "secretagent_") {
		return m, false
	}
	m.help = text(call.Args[1], words)
	if strings.HasPrefix(kind, "s.") {
		step = 2
	}
	for i := first; i < len(call.Args); i += step {
		m.labels = append(m.labels, text(call.Args[i], words))
	}
	return m, true
}

// text returns the text of a literal, of a constant, or of several that are joined; empty for
// anything else.
func text(e ast.Expr, words map[string]string) string {
	switch e := e.(type) {
	case *ast.Ident:
		return words[e.Name]
	case *ast.BinaryExpr:
		return text(e.X, words) + text(e.Y, words)
	}
	s, _ := constant(e)
	return s
}
