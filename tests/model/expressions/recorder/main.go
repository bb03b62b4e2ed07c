// Records what expr-lang answers: reads one case per line, writes one row per line.
//
// A case is {"expr": SOURCE, "env": MAP}. A row adds "out", the result with its types, or "fails",
// "compile" or "run", and "error", the first line of the message. Floats have a point or an exponent,
// ints have none; other types are {"$": TYPE, "v": VALUE}.
//
//	python cases.py | TZ=UTC go run . > ../rows.jsonl
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"reflect"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/expr-lang/expr"
	"github.com/expr-lang/expr/vm"
)

type testCase struct {
	Expr string         `json:"expr"`
	Env  map[string]any `json:"env,omitempty"`
}

func text(value any) string {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		panic(err)
	}
	return strings.TrimSpace(out.String())
}

func typed(name string, value string) string {
	return fmt.Sprintf(`{"$": %s, "v": %s}`, text(name), value)
}

func encode(value any) string {
	switch value := value.(type) {
	case nil:
		return "null"
	case bool:
		return strconv.FormatBool(value)
	case int:
		return strconv.Itoa(value)
	case string:
		return text(value)
	case float64:
		if math.IsNaN(value) || math.IsInf(value, 0) {
			return typed("float", text(fmt.Sprint(value)))
		}
		digits := strconv.FormatFloat(value, 'g', -1, 64)
		if !strings.ContainsAny(digits, ".e") {
			digits += ".0"
		}
		return digits
	case time.Time:
		return typed("time", text(value.Format(time.RFC3339Nano)))
	case time.Duration:
		return typed("duration", strconv.FormatInt(int64(value), 10))
	}
	found := reflect.ValueOf(value)
	switch found.Kind() {
	case reflect.Slice, reflect.Array:
		parts := []string{}
		for i := 0; i < found.Len(); i++ {
			parts = append(parts, encode(found.Index(i).Interface()))
		}
		return "[" + strings.Join(parts, ", ") + "]"
	case reflect.Map:
		parts := []string{}
		for _, key := range found.MapKeys() {
			if found.Type().Key().Kind() == reflect.String {
				parts = append(parts, text(key.String())+": "+encode(found.MapIndex(key).Interface()))
			} else {
				parts = append(parts, "["+encode(key.Interface())+", "+encode(found.MapIndex(key).Interface())+"]")
			}
		}
		sort.Strings(parts)
		if found.Type().Key().Kind() == reflect.String {
			return "{" + strings.Join(parts, ", ") + "}"
		}
		return typed("map", "["+strings.Join(parts, ", ")+"]")
	case reflect.Uint8:
		return typed("uint8", strconv.FormatUint(found.Uint(), 10))
	case reflect.Int:
		return typed(found.Type().String(), strconv.FormatInt(found.Int(), 10))
	}
	return typed(found.Type().String(), text(fmt.Sprint(value)))
}

func answer(test testCase) (result string) {
	phase := "compile"
	defer func() {
		if caught := recover(); caught != nil {
			result = failure(phase, fmt.Sprint(caught))
		}
	}()
	program, err := expr.Compile(test.Expr, expr.AllowUndefinedVariables())
	if err != nil {
		return failure(phase, err.Error())
	}
	phase = "run"
	env := test.Env
	if env == nil {
		env = map[string]any{}
	}
	value, err := vm.Run(program, env)
	if err != nil {
		return failure(phase, err.Error())
	}
	return `"out": ` + encode(value)
}

func failure(phase string, message string) string {
	first, _, _ := strings.Cut(message, "\n")
	return fmt.Sprintf(`"fails": %s, "error": %s`, text(phase), text(first))
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<24)
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	for lines.Scan() {
		var test testCase
		if err := json.Unmarshal(lines.Bytes(), &test); err != nil {
			panic(err)
		}
		row := fmt.Sprintf(`{"expr": %s`, text(test.Expr))
		if test.Env != nil {
			row += `, "env": ` + text(test.Env)
		}
		fmt.Fprintf(out, "%s, %s}\n", row, answer(test))
	}
}
