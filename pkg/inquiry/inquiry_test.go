package inquiry

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/millrace/millrace/pkg/stream"
	"github.com/millrace/millrace/pkg/stream/streamtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type question struct {
	N    int    `json:"n"`
	Text string `json:"text"`
}

// desk answers with twice the number, and refuses what is below 0.
func desk(t *testing.T, conn *stream.Conn) *Desk {
	t.Helper()
	d := NewDesk(conn, func(err error) { t.Error(err) })
	t.Cleanup(d.Close)
	err := Answer(d, conn.AskWriter("twice"), 10*time.Second, func(_ context.Context, q question) (question, error) {
		if q.N < 0 {
			return q, errors.New("it is below 0")
		}
		return question{2 * q.N, strings.Repeat("x", q.N)}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.NC.Flush(); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestOneOfThoseWhoCanAnswers(t *testing.T) {
	conn := streamtest.New(t, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	subject := conn.AskWriter("twice")
	if _, err := Ask[question, question](ctx, conn, subject, question{}); !errors.Is(err, ErrNobody) {
		t.Errorf("nobody is there, but: %v", err)
	}
	first, second := desk(t, conn), desk(t, conn)
	for n := range 5 {
		if a, err := Ask[question, question](ctx, conn, subject, question{N: n}); err != nil || a.N != 2*n {
			t.Errorf("twice %d is %+v, %v", n, a, err)
		}
	}
	if _, err := Ask[question, question](ctx, conn, subject, question{N: -1}); err == nil || err.Error() != "it is below 0" {
		t.Errorf("what is refused: %v", err)
	}
	if _, err := Ask[question, question](ctx, conn, subject, question{N: 2 << 20}); err == nil || !strings.Contains(err.Error(), "ask for less") {
		t.Errorf("an answer that is too large: %v", err)
	}
	if _, err := Ask[string, question](ctx, conn, subject, "?"); err == nil || !strings.Contains(err.Error(), "the question cannot be read") {
		t.Errorf("a question of another kind: %v", err)
	}
	if _, err := Ask[question, []int](ctx, conn, subject, question{}); err == nil || !strings.Contains(err.Error(), "the answer cannot be read") {
		t.Errorf("an answer of another kind: %v", err)
	}
	first.Close()
	if _, err := Ask[question, question](ctx, conn, subject, question{N: 1}); err != nil {
		t.Errorf("of the other: %v", err)
	}
	second.Close()
	if err := conn.NC.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := Ask[question, question](ctx, conn, subject, question{N: 1}); !errors.Is(err, ErrNobody) {
		t.Errorf("both have gone, but: %v", err)
	}
}

func TestADeskThatClosesEndsItsAnswers(t *testing.T) {
	conn := streamtest.New(t, 1)
	began := make(chan struct{})
	d := NewDesk(conn, func(error) {})
	err := Answer(d, conn.AskWriter("slow"), time.Minute, func(ctx context.Context, _ int) (int, error) {
		close(began)
		<-ctx.Done()
		return 0, ctx.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.NC.Flush(); err != nil {
		t.Fatal(err)
	}
	asked := make(chan error)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	go func() {
		_, err := Ask[int, int](ctx, conn, conn.AskWriter("slow"), 1)
		asked <- err
	}()
	<-began
	d.Close()
	if err := <-asked; err == nil || !strings.Contains(err.Error(), "canceled") {
		t.Errorf("%v", err)
	}
}
