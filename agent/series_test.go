package agent

import (
	"fmt"
	"strings"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// ParseSeries reads the Prometheus text of /metrics: series with its labels, as the text has it
// → value. A histogram is there with its count, and as NAME_sum. Those of the runtime are left
// out. What breaks the conventions is among the problems.
func ParseSeries(text string) (all map[string]float64, problems []string) {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		return nil, []string{"this is no Prometheus text: " + err.Error()}
	}
	all = map[string]float64{}
	for name, family := range families {
		if !strings.HasPrefix(name, "secretagent_") {
			continue
		}
		if counter := family.GetType() == dto.MetricType_COUNTER; counter != strings.HasSuffix(name, "_total") {
			problems = append(problems, fmt.Sprintf("%s is a %v: counters, and only they, end in _total", name, family.GetType()))
		}
		if family.GetHelp() == "" {
			problems = append(problems, name+" has no help")
		}
		for _, m := range family.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			key := func(name string) string {
				if len(labels) == 0 {
					return name
				}
				return name + "{" + strings.Join(labels, ",") + "}"
			}
			all[key(name)] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			if h := m.GetHistogram(); h != nil {
				all[key(name+"_sum")] = h.GetSampleSum()
			}
		}
	}
	return all, problems
}
