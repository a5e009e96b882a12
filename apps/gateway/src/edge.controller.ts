import { Controller, Get, Inject, Param, Res } from '@nestjs/common';
import type { FastifyReply } from 'fastify';
import { Admissions } from './admission.js';

/** The edge keeps no more; entries of other sales come to a gateway. */
const MAX_SALES = 1_000;

/**
 * What the edge (deploy/edge) may refuse by itself. It asks several times a second, so a change needs no message, and who
 * cannot be asked any more is not believed any more. On the ops port, which shoppers cannot reach.
 */
@Controller('edge')
export class EdgeController {
  constructor(@Inject(Admissions) private readonly admissions: Admissions) {}

  /** By sale: what is refused to whom, and for how long at least (ms from now). Nothing while this gateway itself is not sure. */
  @Get('refusals')
  refusals() {
    // The last to open: those that a crowd waits for.
    const refusals = this.admissions.refusalsOfStrangers().slice(-MAX_SALES);
    return {
      refusals: refusals.map(({ saleId, code, forMs, holders }) => ({
        saleId,
        code,
        ...(forMs === undefined ? {} : { forMs }),
        ...(holders && {
          holders: {
            version: holders.version,
            buckets: holders.bucketCount,
            bitsPerBucket: holders.filterBits,
          },
        }),
      })),
    };
  }

  /** The bytes of a holder filter; 404 where it is no longer, or not yet, this version. */
  @Get('holders/:saleId/:version')
  holders(
    @Param('saleId') saleId: string,
    @Param('version') version: string,
    @Res() reply: FastifyReply,
  ): void {
    const refusal = this.admissions.refusalsOfStrangers().find((one) => one.saleId === saleId);
    if (refusal?.holders?.version !== version) {
      void reply.status(404).send();
      return;
    }
    void reply.header('content-type', 'application/octet-stream').send(refusal.holders.bytes);
  }
}
