// Toxiproxy with one toxic more: it can cut, delay, reset and truncate by itself, but not corrupt.
package main

import (
	"flag"
	"os"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/Shopify/toxiproxy/v2/toxics"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// CorruptToxic flips a bit of every Every-th byte that comes after the first After bytes of a connection.
type CorruptToxic struct {
	After int64 `json:"after"`
	Every int64 `json:"every"`
}

type corrupted struct{ seen int64 }

// NewState is a connection's own count.
func (t *CorruptToxic) NewState() interface{} { return new(corrupted) }

// Pipe is called again after each interruption, with the same state.
func (t *CorruptToxic) Pipe(stub *toxics.ToxicStub) {
	state := stub.State.(*corrupted)
	for {
		select {
		case <-stub.Interrupt:
			return
		case chunk := <-stub.Input:
			if chunk == nil {
				stub.Close()
				return
			}
			for i := range chunk.Data {
				state.seen++
				if past := state.seen - t.After; past > 0 && past%max(t.Every, 1) == 0 {
					chunk.Data[i] ^= 1
				}
			}
			stub.Output <- chunk
		}
	}
}

func main() {
	host := flag.String("host", "127.0.0.1", "where the API listens")
	port := flag.String("port", "8474", "its port")
	flag.Parse()
	toxics.Register("corrupt", new(CorruptToxic))
	logger := zerolog.New(os.Stderr).Level(zerolog.WarnLevel)
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(prometheus.NewRegistry()), logger)
	server.Listen(*host, *port)
}
