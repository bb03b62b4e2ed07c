// Recorder runs templates with Go's text/template and writes what they print.
//
//	python -m tests.model.templates.recorder.cases | (cd tests/model/templates/recorder && go run .) \
//	    > tests/model/templates/rows.jsonl
//
// Each line of the input is {"template": ..., "data": ...}. Each line of the output has "output" too,
// or "fails": "parse" or "run". Slices have no capacity beyond their length, as json.Unmarshal would
// give them more, by its own growth.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"text/template"
)

type row struct {
	Template string          `json:"template"`
	Data     json.RawMessage `json:"data"`
	Output   *string         `json:"output,omitempty"`
	Fails    string          `json:"fails,omitempty"`
}

func clip(value any) any {
	switch value := value.(type) {
	case []any:
		for i := range value {
			value[i] = clip(value[i])
		}
		return value[:len(value):len(value)]
	case map[string]any:
		for key := range value {
			value[key] = clip(value[key])
		}
	}
	return value
}

func execute(parsed *template.Template, data any) (output string, err error) {
	defer func() {
		if problem := recover(); problem != nil {
			err = fmt.Errorf("panic: %v", problem)
		}
	}()
	var text strings.Builder
	err = parsed.Execute(&text, data)
	return text.String(), err
}

func record(r *row) error {
	var data any
	if err := json.Unmarshal(r.Data, &data); err != nil {
		return err
	}
	parsed, err := template.New("template").Option("missingkey=zero").Parse(r.Template)
	if err != nil {
		r.Fails = "parse"
		return nil
	}
	output, err := execute(parsed, clip(data))
	if err != nil {
		r.Fails = "run"
		return nil
	}
	r.Output = &output
	return nil
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<24)
	writer := bufio.NewWriter(os.Stdout)
	encoder := json.NewEncoder(writer)
	encoder.SetEscapeHTML(false)
	for lines.Scan() {
		var r row
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			panic(err)
		}
		if err := record(&r); err != nil {
			panic(err)
		}
		if err := encoder.Encode(&r); err != nil {
			panic(err)
		}
	}
	if err := lines.Err(); err != nil {
		panic(err)
	}
	if err := writer.Flush(); err != nil {
		panic(err)
	}
}
